"""What `mooncake inspect requests` asks: of the master, which asks everybody else."""

from __future__ import annotations

from msgspec import Struct

from mooncake_core.telemetry.spans import Span


class GetSpans(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """What do you know of this request? Its id is the one in the x-request-id header."""

    request_id: str


class SpansOf(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The spans of one request, in order of their beginning."""

    spans: list[Span]
    silent: list[str] = []
    """Processes that did not answer."""
    dropped: int = 0
    """Spans that there would be more: a process keeps a limited number per request."""


class ListRequests(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Which requests came lately? The newest first."""

    limit: int = 20


class RequestSummary(Struct, frozen=True, kw_only=True, gc=False):
    """One choice of one request, as its gateway sees it."""

    request_id: str
    model: str
    age_s: float
    outcome: str
    """running, stop, length, cancelled, or an error's code."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    attempts: int
    ttft_s: float | None
    """Arrival to first token; None before that."""
    total_s: float
    exposed_s: float | None
    """Exposed transfer time."""


class Requests(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The newest first."""

    requests: list[RequestSummary]
