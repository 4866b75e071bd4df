"""The latest requests of a gateway, running and ended."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from mooncake_core.gateway.generation import UNKNOWN, Generation, Step, Timings
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.messages.timeline import RequestSummary

KEPT: Final = 1000


@dataclass(slots=True)
class Entry:
    """One choice of a request."""

    request_id: str
    model: str
    prompt_tokens: int
    started_s: float
    outcome: str = "running"
    cached_tokens: int = 0
    output_tokens: int = 0
    first_token_s: float | None = None
    ended_s: float | None = None
    timings: Timings = UNKNOWN

    def took(self, step: Step, num_tokens: int) -> None:
        """New tokens have come, and so many of them count."""
        if self.first_token_s is None:
            self.first_token_s = time.time()
        self.output_tokens += num_tokens
        self.cached_tokens = step.cached_tokens
        self.timings = step.timings


class RequestLog:
    """Bounded; each entry becomes spans of the request when it ends."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._entries: deque[Entry] = deque(maxlen=KEPT)

    def begin(self, generation: Generation) -> Entry:
        """A generation is asked for."""
        entry = Entry(generation.request_id, generation.model.name, len(generation.token_ids), time.time())
        self._entries.append(entry)
        return entry

    def end(self, entry: Entry, outcome: str) -> None:
        """It is over: a finish reason, cancelled, or an error's code."""
        entry.outcome = outcome
        entry.ended_s = time.time()
        self._spans.add(
            entry.request_id,
            "request",
            entry.started_s,
            entry.ended_s,
            outcome=outcome,
            prompt_tokens=entry.prompt_tokens,
            cached_tokens=entry.cached_tokens,
            output_tokens=entry.output_tokens,
        )
        if entry.first_token_s is not None:
            self._spans.add(entry.request_id, "until first token", entry.started_s, entry.first_token_s)
            self._spans.add(entry.request_id, "tokens sent", entry.first_token_s, entry.ended_s)

    def latest(self, limit: int) -> list[RequestSummary]:
        """The newest first."""
        now = time.time()
        newest = list(self._entries)[::-1][:limit]
        return [_summary(entry, now) for entry in newest]


def _summary(entry: Entry, now: float) -> RequestSummary:
    return RequestSummary(
        request_id=entry.request_id,
        model=entry.model,
        age_s=now - entry.started_s,
        outcome=entry.outcome,
        prompt_tokens=entry.prompt_tokens,
        cached_tokens=entry.cached_tokens,
        output_tokens=entry.output_tokens,
        attempts=entry.timings.attempts,
        ttft_s=None if entry.first_token_s is None else entry.first_token_s - entry.started_s,
        total_s=(entry.ended_s or now) - entry.started_s,
        exposed_s=entry.timings.exposed_s,
    )
