"""Spans stay bounded, belong to their request, and become a trace whose lanes do not overlap."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.telemetry.chrome_trace import chrome_trace
from mooncake_core.telemetry.spans import MAX_REQUESTS, MAX_SPANS, Span, Spans


def test_a_request_has_its_choices_and_attempts_and_no_others() -> None:
    spans = Spans("p")
    for request_id in ("ab", "ab-1", "ab.2", "ab-1.2", "abc", "a"):
        spans.add(request_id, request_id, 1.0, 2.0)
    assert {span.name for span in spans.of("ab")} == {"ab", "ab-1", "ab.2", "ab-1.2"}


def test_what_is_kept_is_bounded() -> None:
    spans = Spans("p")
    for number in range(MAX_REQUESTS + 5):
        spans.add(f"r{number}", "x", 0, 1)
    assert spans.of("r4") == []
    assert len(spans.of("r5")) == 1
    for _ in range(MAX_SPANS + 5):
        spans.add("many", "x", 0, 1)
    assert len(spans.of("many")) == MAX_SPANS
    for _ in range(MAX_SPANS + 5):
        spans.add_step("long", 0.0, 1.0)
    assert len(spans.of("long")) == MAX_SPANS


def test_decode_steps_are_spans_among_others() -> None:
    spans = Spans("d")
    spans.add_step("r", 2.0, 2.5)
    spans.add("r", "wait for KV", 1.0, 2.0)
    spans.add_step("r", 3.0, 3.25)
    found = [(span.name, span.start_s, span.duration_s) for span in spans.of("r")]
    assert found == [("wait for KV", 1.0, 1.0), ("decode step", 2.0, 0.5), ("decode step", 3.0, 0.25)]


def test_a_span_around_a_block_is_there_even_when_it_fails() -> None:
    spans = Spans("p")
    try:
        with spans.during("r", "work", a=1) as found:
            found["b"] = "two"
            raise ValueError
    except ValueError:
        pass
    (span,) = spans.of("r")
    assert span.attributes == {"a": 1, "b": "two"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["p", "d"]), st.sampled_from(["send", "put"]), st.integers(0, 50), st.integers(0, 20)
        ),
        max_size=30,
    )
)
def test_spans_on_one_lane_never_overlap(drawn: list[tuple[str, str, int, int]]) -> None:
    spans = [Span(process, name, float(start), float(duration), {}) for process, name, start, duration in drawn]
    events = [event for event in chrome_trace(spans)["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(spans)
    by_lane: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        by_lane.setdefault(event["tid"], []).append(event)
    for lane in by_lane.values():
        ordered = sorted(lane, key=lambda event: (event["ts"], event["ts"] + event["dur"]))
        assert all(one["ts"] + one["dur"] <= other["ts"] + 1.01 for one, other in itertools.pairwise(ordered))


def test_layers_lie_within_their_chunk() -> None:
    spans = [
        Span("p", "compute chunk", 1.0, 2.0, {}),
        Span("p", "layer 0", 1.0, 1.0, {}),
        Span("p", "layer 1", 2.0, 1.0, {}),
    ]
    events = [event for event in chrome_trace(spans)["traceEvents"] if event["ph"] == "X"]
    assert len({event["tid"] for event in events}) == 1
    assert [event["ts"] for event in events] == [0, 0, 1e6]
    assert chrome_trace([]) == {"traceEvents": []}
