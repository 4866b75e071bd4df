"""Spans stay bounded, belong to their request, and become a trace whose lanes do not overlap."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
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


def test_members_of_a_process_share_what_it_keeps() -> None:
    spans = Spans("p", num_members=100)
    for number in range(MAX_REQUESTS // 100 + 1):
        spans.add(f"r{number}", "x", 0, 1)
    assert spans.of("r0") == []
    assert len(spans.of("r1")) == 1


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


def test_what_is_not_kept_is_counted() -> None:
    spans = Spans("p")
    for _ in range(MAX_SPANS + 3):
        spans.add("r", "x", 0, 1)
        spans.add_step("r-1", 0, 1)
    spans.add("other", "x", 0, 1)
    assert (spans.num_dropped("r"), spans.num_dropped("r-1"), spans.num_dropped("other")) == (6, 3, 0)


def test_the_memory_of_all_requests_is_bounded() -> None:
    tracemalloc.start()
    try:
        spans = Spans("p", max_bytes=1 << 20)
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200):
            for part in range(100):
                spans.add(f"r{number}", f"layer {part}", part + 0.5, part + 0.7, start=part * 1000, path="shm" * part)
                spans.add_step(f"r{number}", part + 0.5, part + 0.7)
        took = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * (1 << 20) < took < 1.3 * (1 << 20)
    assert spans.of("r0") == []
    assert len(spans.of("r199")) == 200
    # One request alone stays, however large.
    small = Spans("p", max_bytes=1)
    for _ in range(3):
        small.add("r", "x", 0, 1)
    assert len(small.of("r")) == 3


def test_many_threads_may_write() -> None:
    spans = Spans("p", max_bytes=1 << 20)
    threads = [
        threading.Thread(target=lambda n=n: [spans.add(f"r{n}-{i % 7}", "x", i, i + 1, i=i) for i in range(2000)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spans._num_bytes == sum(request.num_bytes for request in spans._requests.values()) <= 1 << 20


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
