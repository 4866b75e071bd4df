"""What happened to a request in this process, and when: bounded, kept in memory, asked for by `mooncake inspect requests`."""

from __future__ import annotations

import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

DECODE_STEP: Final = "decode step"
MAX_REQUESTS: Final = 1000
"""Of all members of a process together."""
MAX_SPANS: Final = 4096
"""Per request; what comes later is counted, not kept."""
MAX_BYTES: Final = 64 << 20
"""Likewise; the oldest requests go first."""
SPAN_BYTES: Final = 350
ATTRIBUTE_BYTES: Final = 60
STEP_BYTES: Final = 18
"""An array grows by an eighth more than it needs."""
REQUEST_BYTES: Final = 500


class Span(Struct, frozen=True, array_like=True):
    """Something that took time. Start is seconds since 1970 by that host's clock."""

    process: str
    name: str
    start_s: float
    duration_s: float
    attributes: dict[str, str | int | float]


@dataclass(slots=True)
class _Request:
    spans: list[Span] = field(default_factory=list)
    steps: array[float] = field(default_factory=lambda: array("d"))
    """Start and end of each decode step, one after another."""
    num_dropped: int = 0
    num_bytes: int = 0


class Spans:
    """The spans of the latest requests, as many as fit into `max_bytes`. Written by any thread.

    `num_members` share a process, and what it keeps.
    """

    def __init__(self, process: str, *, max_bytes: int = MAX_BYTES, num_members: int = 1) -> None:
        self.process = process
        self._max_bytes = max_bytes // num_members
        self._max_requests = max(1, MAX_REQUESTS // num_members)
        self._num_bytes = 0
        self._requests: OrderedDict[str, _Request] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, request_id: str, name: str, start_s: float, end_s: float, **attributes: str | int | float) -> None:
        """Keeps one span; times are those of time.time(), so that the spans of several hosts lie on one axis."""
        span = Span(self.process, name, start_s, max(0.0, end_s - start_s), attributes)
        with self._lock:
            request = self._of(request_id)
            if len(request.spans) >= MAX_SPANS:
                request.num_dropped += 1
            else:
                request.spans.append(span)
                self._took(request, _bytes_of(attributes))

    def add_step(self, request_id: str, start_s: float, end_s: float) -> None:
        """Keeps a decode step; there are many, so each costs 16 bytes."""
        with self._lock:
            request = self._of(request_id)
            if len(request.steps) >= 2 * MAX_SPANS:
                request.num_dropped += 1
            else:
                request.steps.extend((start_s, end_s))
                self._took(request, STEP_BYTES)

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
        found = [span for request in self._known(request_id) for span in (*request.spans, *self._steps_of(request))]
        return sorted(found, key=lambda span: span.start_s)

    def num_dropped(self, request_id: str) -> int:
        """How many of them there would be more."""
        return sum(request.num_dropped for request in self._known(request_id))

    def _known(self, request_id: str) -> list[_Request]:
        with self._lock:
            return [
                request
                for known, request in self._requests.items()
                if known.startswith(request_id) and known[len(request_id) : len(request_id) + 1] in ("", "-", ".")
            ]

    def _of(self, request_id: str) -> _Request:
        request = self._requests.get(request_id)
        if request is None:
            request = self._requests[request_id] = _Request()
            self._took(request, REQUEST_BYTES)
        return request

    def _took(self, request: _Request, num_bytes: int) -> None:
        """Counts memory; the oldest requests go where it is too much."""
        request.num_bytes += num_bytes
        self._num_bytes += num_bytes
        while len(self._requests) > 1 and (
            len(self._requests) > self._max_requests or self._num_bytes > self._max_bytes
        ):
            _, oldest = self._requests.popitem(last=False)
            self._num_bytes -= oldest.num_bytes
            oldest.num_bytes = 0

    def _steps_of(self, request: _Request) -> Iterator[Span]:
        times_s = list(request.steps)
        for start_s, end_s in zip(times_s[::2], times_s[1::2], strict=False):
            yield Span(self.process, DECODE_STEP, start_s, max(0.0, end_s - start_s), {})


def _bytes_of(attributes: Mapping[str, str | int | float]) -> int:
    """What a span takes, about; measured with CPython 3.11."""
    return SPAN_BYTES + sum(ATTRIBUTE_BYTES + (len(v) if isinstance(v, str) else 0) for v in attributes.values())
