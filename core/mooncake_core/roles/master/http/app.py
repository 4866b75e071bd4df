"""The routes of the admin port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mooncake_core.errors import InvalidRequest, MooncakeError, TenantUnknown
from mooncake_core.gateway.http_errors import HTTPError, status_of
from mooncake_core.roles.master.http import answers
from mooncake_core.roles.master.http.access import Access
from mooncake_core.roles.master.http.drains import DrainRoutes
from mooncake_core.roles.master.http.keys import KeyRoutes
from mooncake_core.roles.master.http.metrics import MasterMetrics
from mooncake_core.roles.master.http.quotas import QuotaRoutes
from mooncake_core.roles.master.http.segments import SegmentRoutes
from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.roles.master.http.summary import summary
from mooncake_core.roles.metrics import CONTENT_TYPE

Answer = Callable[[Request], Awaitable[Response]]


class AdminApp:
    """Upstream's routes, on this master."""

    def __init__(self, state: MasterState, access: Access) -> None:
        self._state = state
        self._access = access
        self._metrics_of = MasterMetrics(state)

    def app(self) -> Starlette:
        """The ASGI application."""
        keys, segments = KeyRoutes(self._state), SegmentRoutes(self._state)
        quotas, drains = QuotaRoutes(self._state), DrainRoutes(self._state)
        looking: dict[str, Answer] = {
            "/metrics": self._metrics,
            "/metrics/summary": self._summary,
            "/role": self._role,
            "/ha_status": self._ha_status,
            "/leader": self._leader,
            "/query_key": keys.query_key,
            "/batch_query_keys": keys.batch_query_keys,
            "/get_all_keys": keys.get_all_keys,
            "/get_all_segments": segments.get_all_segments,
            "/get_segments_detail": segments.get_segments_detail,
            "/query_segment": segments.query_segment,
            "/api/v1/segments/status": segments.status,
            "/api/v1/drain_jobs/query": drains.query,
        }
        routes = [Route(path, self._guarded(answer), methods=["GET"]) for path, answer in looking.items()]
        routes += [
            Route("/health", self._health, methods=["GET"]),  # for whoever looks after processes: it has no key
            Route("/api/v1/tenant_quotas", self._guarded(quotas.answer), methods=["GET", "PUT", "DELETE"]),
            Route("/api/v1/remove_all", self._guarded(keys.remove_all), methods=["POST"]),
            Route("/api/v1/drain_jobs", self._guarded(drains.create), methods=["POST"]),
            Route("/api/v1/drain_jobs/cancel", self._guarded(drains.cancel), methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _no_route})

    def _guarded(self, answer: Answer) -> Answer:
        async def guarded(request: Request) -> Response:
            try:
                self._access.check(request)
                return await answer(request)
            except TenantUnknown as error:
                return answers.failure(404, answers.TENANT_NOT_REGISTERED, error.message)
            except (HTTPError, InvalidRequest) as error:
                return answers.failure(status_of(error)[0], answers.INVALID_PARAMS, error.message)
            except MooncakeError as error:
                return answers.failure(status_of(error)[0], answers.INTERNAL_ERROR, error.message)

        return guarded

    async def _metrics(self, request: Request) -> Response:
        return Response(self._metrics_of.render(), media_type=CONTENT_TYPE)

    async def _summary(self, request: Request) -> Response:
        return answers.text(summary(self._state))

    async def _health(self, request: Request) -> Response:
        return answers.json(
            {"status": "ok", "role": "leader", "ha_state": "serving", "service_ready": True, **self._view()}
        )

    async def _role(self, request: Request) -> Response:
        return answers.text("leader")

    async def _ha_status(self, request: Request) -> Response:
        return answers.text("serving")

    async def _leader(self, request: Request) -> Response:
        return answers.json({"present": True, **self._view()})

    def _view(self) -> dict[str, object]:
        """This master: the only one there is."""
        return {"leader_address": self._state.address, "view_version": self._state.term}


async def _no_route(request: Request, error: Exception) -> Response:
    """Unknown routes and methods."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = "no such route" if status == 404 else "method not allowed"
    return answers.failure(status, answers.INVALID_PARAMS, f"{request.method} {request.url.path}: {what}")
