"""What happened to a request in this process, and when: bounded, kept in memory, asked for by `mooncake inspect requests`."""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from msgspec import Struct

DECODE_STEP: Final = "decode step"
MAX_REQUESTS: Final = 1000
MAX_SPANS: Final = 4096
"""Per request; what comes later is counted, not kept."""


class Span(Struct, frozen=True, array_like=True):
    """Something that took time. Start is seconds since 1970 by that host's clock."""

    process: str
    name: str
    start_s: float
    duration_s: float
    attributes: dict[str, str | int | float]


class _Request(NamedTuple):
    spans: list[Span]
    steps: array[float]
    """Start and end of each decode step, one after another."""


class Spans:
    """The spans of the latest requests. Written by any thread."""

    def __init__(self, process: str) -> None:
        self.process = process
        self._requests: OrderedDict[str, _Request] = OrderedDict()

    def add(self, request_id: str, name: str, start_s: float, end_s: float, **attributes: str | int | float) -> None:
        """Keeps one span; times are those of time.time(), so that the spans of several hosts lie on one axis."""
        spans = self._of(request_id).spans
        if len(spans) < MAX_SPANS:
            spans.append(Span(self.process, name, start_s, max(0.0, end_s - start_s), attributes))

    def add_step(self, request_id: str, start_s: float, end_s: float) -> None:
        """Keeps a decode step; there are many, so each costs 16 bytes."""
        steps = self._of(request_id).steps
        if len(steps) < 2 * MAX_SPANS:
            steps.extend((start_s, end_s))

    @contextmanager
    def during(
        self, request_id: str, name: str, **attributes: str | int | float
    ) -> Iterator[dict[str, str | int | float]]:
        """A span around a block; more attributes may be added to what it yields."""
        started = time.time()
        found: dict[str, str | int | float] = dict(attributes)
        try:
            yield found
        finally:
            self.add(request_id, name, started, time.time(), **found)

    def of(self, request_id: str) -> list[Span]:
        """Those of one request, and of its further choices and attempts, in order of their beginning."""
        found = [
            span
            for known, request in list(self._requests.items())
            if known.startswith(request_id) and known[len(request_id) : len(request_id) + 1] in ("", "-", ".")
            for span in (*request.spans, *self._steps_of(request))
        ]
        return sorted(found, key=lambda span: span.start_s)

    def _of(self, request_id: str) -> _Request:
        request = self._requests.get(request_id)
        if request is None:
            request = self._requests.setdefault(request_id, _Request([], array("d")))
            while len(self._requests) > MAX_REQUESTS:
                self._requests.popitem(last=False)
        return request

    def _steps_of(self, request: _Request) -> Iterator[Span]:
        times_s = list(request.steps)
        for start_s, end_s in zip(times_s[::2], times_s[1::2], strict=False):
            yield Span(self.process, DECODE_STEP, start_s, max(0.0, end_s - start_s), {})
