"""What `mooncake inspect requests` asks every process."""

from __future__ import annotations

from msgspec import Struct

from mooncake_core.telemetry.spans import Span


class GetSpans(Struct, frozen=True, tag=True, kw_only=True):
    """What do you know of this request? Its id is the one in the x-request-id header."""

    request_id: str


class SpansOf(Struct, frozen=True, tag=True, kw_only=True):
    """The spans of one request in one process."""

    spans: list[Span]
