"""The gateway's metrics, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

OVERHEAD_BUCKETS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7e-3, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1)
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class GatewayMetrics:
    """What `GET /metrics` shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "mooncake_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self._requests_by: dict[tuple[str, int], Counter] = {}
        self.in_progress = Gauge("mooncake_requests_in_progress", "Requests being served", registry=registry)
        self.ttft = Histogram(
            "mooncake_ttft_seconds", "Time to first token", buckets=LATENCY_BUCKETS, registry=registry
        )
        self.tbt = Histogram("mooncake_tbt_seconds", "Gaps between tokens", buckets=LATENCY_BUCKETS, registry=registry)
        self.dispatch = Histogram(
            "mooncake_gateway_dispatch_seconds",
            "From a request's arrival until its prompt was sent to a prefill instance, placing included",
            buckets=OVERHEAD_BUCKETS,
            registry=registry,
        )
        self.token = Histogram(
            "mooncake_gateway_token_seconds",
            "From a token's arrival in the gateway until its event was written to the client",
            buckets=OVERHEAD_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter("mooncake_prompt_tokens", "Prompt tokens served", registry=registry)
        self.cached_tokens = Counter("mooncake_cached_tokens", "Prompt tokens from the cache", registry=registry)
        self.output_tokens = Counter("mooncake_output_tokens", "Tokens generated", registry=registry)

    def request(self, route: str, status: int) -> None:
        """One more was answered."""
        counter = self._requests_by.get((route, status))
        if counter is None:  # one for each of our routes and statuses: few
            counter = self._requests_by[route, status] = self.requests.labels(route, str(status))
        counter.inc()

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
