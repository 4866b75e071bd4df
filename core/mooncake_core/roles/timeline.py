"""Answers what a process knows of a request's way."""

from __future__ import annotations

from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.messages.timeline import GetSpans, SpansOf
from mooncake_core.wire.server import Call, Handler


def timeline_handlers(spans: Spans) -> dict[type, Handler]:
    """For a process's server."""

    def of(message: GetSpans, call: Call) -> SpansOf:
        return SpansOf(spans=spans.of(message.request_id), dropped=spans.num_dropped(message.request_id))

    return {GetSpans: of}
