"""Spans as a Chrome trace: opens in any viewer of the trace event format. One process per Mooncake process, one lane per
kind of work, and more lanes where work of a kind overlaps. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mooncake_core.telemetry.spans import Span

COMPUTE: Final = "compute"
_INSIDE: Final = 1e-6
"""Spans that touch do not overlap: clocks have a resolution."""


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """The trace's JSON; times in microseconds since the first span's beginning."""
    if not spans:
        return {"traceEvents": []}
    origin_s = min(span.start_s for span in spans)
    processes = {name: number for number, name in enumerate(dict.fromkeys(span.process for span in spans), 1)}
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": name}}
        for name, number in processes.items()
    ]
    lanes: dict[tuple[str, str], list[list[Span]]] = {}
    numbers: dict[tuple[str, str, int], int] = {}
    for span in sorted(spans, key=lambda span: (span.start_s, -span.duration_s)):
        kind = lane_of(span)
        lane = _place(lanes.setdefault((span.process, kind), []), span)
        number = numbers.get((span.process, kind, lane))
        if number is None:
            number = numbers[span.process, kind, lane] = len(numbers) + 1
            name = kind if lane == 0 else f"{kind} {lane + 1}"
            thread = {"name": "thread_name", "ph": "M", "pid": processes[span.process], "tid": number}
            events.append({**thread, "args": {"name": name}})
        events.append(
            {
                "name": span.name,
                "cat": kind,
                "ph": "X",
                "pid": processes[span.process],
                "tid": number,
                "ts": round((span.start_s - origin_s) * 1e6, 3),
                "dur": round(span.duration_s * 1e6, 3),
                "args": span.attributes,
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def lane_of(span: Span) -> str:
    """The kind of work: layers lie within their chunk."""
    return COMPUTE if span.name == "compute chunk" or span.name.startswith("layer ") else span.name


def _place(lanes: list[list[Span]], span: Span) -> int:
    """The first lane where the span lies within another one, or beside all."""
    for number, lane in enumerate(lanes):
        while lane and lane[-1].start_s + lane[-1].duration_s <= span.start_s + _INSIDE:
            lane.pop()
        if not lane or _contains(lane[-1], span):
            lane.append(span)
            return number
    lanes.append([span])
    return len(lanes) - 1


def _contains(outer: Span, inner: Span) -> bool:
    return lane_of(outer) == COMPUTE and outer.start_s + outer.duration_s + _INSIDE >= inner.start_s + inner.duration_s
