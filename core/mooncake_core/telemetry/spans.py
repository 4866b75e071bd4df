"""What happened to a request in this process, and when: bounded, kept in memory, asked for by `mooncake inspect requests`."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct

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


class Spans:
    """The spans of the latest requests. Written by any thread."""

    def __init__(self, process: str) -> None:
        self.process = process
        self._requests: OrderedDict[str, list[Span]] = OrderedDict()

    def add(self, request_id: str, name: str, start_s: float, end_s: float, **attributes: str | int | float) -> None:
        """Keeps one span; times are those of time.time(), so that the spans of several hosts lie on one axis."""
        spans = self._requests.get(request_id)
        if spans is None:
            spans = self._requests.setdefault(request_id, [])
            while len(self._requests) > MAX_REQUESTS:
                self._requests.popitem(last=False)
        if len(spans) < MAX_SPANS:
            spans.append(Span(self.process, name, start_s, max(0.0, end_s - start_s), attributes))

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
            for known, spans in list(self._requests.items())
            if known.startswith(request_id) and known[len(request_id) : len(request_id) + 1] in ("", "-", ".")
            for span in list(spans)
        ]
        return sorted(found, key=lambda span: span.start_s)
