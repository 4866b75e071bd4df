"""The port of a node or an instance for Prometheus: what its Transfer Engine has moved, and figures of its process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from mooncake_core.address import HostPort
from mooncake_core.transfer.lanes import Lane

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from mooncake_core.roles.http_server import HttpServer
    from mooncake_core.transfer.engine import TransferEngine

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LABELS: Final = ("transport", "local", "peer")
"""The peer is its host, or its host and NIC: as many as there are hosts, and no more than lanes.MOST_LANES."""
COUNTERS: Final = (
    ("mooncake_transfer_bytes", "Bytes that this process read or wrote elsewhere, by what carried them", "num_bytes"),
    ("mooncake_transfer_operations", "Operations that ended well", "num_operations"),
    ("mooncake_transfer_failures", "Operations that failed here, or went another way then", "num_failures"),
    ("mooncake_transfer_set_aside", "How often it was not used for a while, having failed", "num_set_aside"),
)


class TransferCollector(Collector):
    """Asks an engine."""

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: registering must not need figures."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All figures of now."""
        lanes = self._engine.lanes()
        for name, text, field in COUNTERS:
            yield _by_lane(CounterMetricFamily(name, text, labels=LABELS), lanes, field)


def _by_lane(family: CounterMetricFamily, lanes: Iterable[Lane], field: str) -> CounterMetricFamily:
    for lane in lanes:
        family.add_metric([lane.transport, lane.local, lane.peer], getattr(lane, field))
    return family


class MetricsPort:
    """Serves while it is open; on an event loop. Without a port it does nothing."""

    def __init__(self, host: str, port: int | None, engine: TransferEngine) -> None:
        """Raises WireError where the port cannot be had."""
        self.url = ""
        self._server: HttpServer | None = None
        if port is None:
            return
        from starlette.applications import Starlette
        from starlette.routing import Route

        from mooncake_core.roles.http_server import HttpServer, listen, local_url

        self._registry = CollectorRegistry()
        self._registry.register(TransferCollector(engine))
        ProcessCollector(registry=self._registry)
        listener = listen(HostPort(host, port), what="the port for metrics", setting="metrics_port")
        self.url = local_url(host, listener)
        self._server = HttpServer(Starlette(routes=[Route("/metrics", self._answer)]), listener)

    async def close(self) -> None:
        """Ends it. Idempotent."""
        if self._server is not None:
            await self._server.close()
            self._server = None

    async def _answer(self, request: Request) -> Response:
        from starlette.responses import Response

        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE)
