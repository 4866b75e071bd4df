"""Routes about draining: a job is named by its nodes, and is known for as long as they drain."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from mooncake_core.errors import InvalidRequest
from mooncake_core.roles.master.http.answers import JOB_NOT_FOUND, SEGMENT_NOT_FOUND, failure, json
from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.tasks import DrainNode, Drains, DrainStatus, QueryDrains, UndrainNode

RUNNING: Final = (2, "RUNNING")
SUCCEEDED: Final = (3, "SUCCEEDED")
"""Of upstream's job states."""
SEPARATOR: Final = ","
"""Between the names in a job's id; no name has one."""


class DrainRequest(Struct, frozen=True, kw_only=True):
    """The body of a new job."""

    segments: list[str]
    force: bool = False
    """What fits nowhere else goes."""


class DrainRoutes:
    """Begins, shows and ends the draining of nodes."""

    def __init__(self, state: MasterState) -> None:
        self._state = state

    async def create(self, request: Request) -> Response:
        """All of these nodes, or none: an unknown one is said before anything begins."""
        wanted = _parse(await request.body())
        known = {node.name for node in self._state.report().nodes}
        if not known.issuperset(wanted.segments):
            return failure(404, SEGMENT_NOT_FOUND, "SEGMENT_NOT_FOUND")
        for name in wanted.segments:
            await self._state.ask(DrainNode(name=name, force=wanted.force), Done)
        return _done(SEPARATOR.join(wanted.segments), "CREATED")

    async def query(self, request: Request) -> Response:
        """How far it is."""
        job_id, drains = await self._find(request)
        return json(_report(job_id, drains)) if drains else failure(404, JOB_NOT_FOUND, "JOB_NOT_FOUND")

    async def cancel(self, request: Request) -> Response:
        """The nodes take new objects again; what was moved stays where it is."""
        job_id, drains = await self._find(request)
        if not drains:
            return failure(404, JOB_NOT_FOUND, "JOB_NOT_FOUND")
        for drain in drains:
            await self._state.ask(UndrainNode(name=drain.name), Done)
        return _done(job_id, "CANCELED")

    async def _find(self, request: Request) -> tuple[str, list[DrainStatus]]:
        job_id = request.query_params.get("job_id", "")
        if not job_id:
            raise InvalidRequest("Missing or invalid job_id")
        found = await self._state.ask(QueryDrains(names=job_id.split(SEPARATOR)), Drains)
        return job_id, found.drains


def _parse(body: bytes) -> DrainRequest:
    try:
        wanted = msgspec.json.decode(body, type=DrainRequest)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f'expected a body like {{"segments": ["store-0"]}}: {error}') from error
    if not wanted.segments:
        raise InvalidRequest("expected at least one segment, got none")
    return wanted


def _done(job_id: str, status: str) -> Response:
    return json({"success": True, "job_id": job_id, "status": status, "error_code": 0, "error_message": ""})


def _report(job_id: str, drains: list[DrainStatus]) -> dict[str, Any]:
    number, status = SUCCEEDED if all(drain.state == "drained" for drain in drains) else RUNNING
    stuck = sum(drain.stuck for drain in drains)
    return {
        "success": True,
        "job_id": job_id,
        "type": 0,
        "type_name": "DRAIN",
        "status": number,
        "status_name": status,
        "segments": [drain.name for drain in drains],
        "succeeded_units": sum(drain.moved + drain.released for drain in drains),
        "failed_units": sum(drain.dropped for drain in drains),
        "blocked_units": stuck,
        "active_units": sum(drain.objects_left for drain in drains) - stuck,
        "message": "; ".join(drain.reason for drain in drains if drain.reason),
        "error_code": 0,
        "error_message": "",
    }
