"""One choice of an answer: tokens of the cluster become text, until a stop string, the end, or a hang-up."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from mooncake_core.errors import MooncakeError
from mooncake_core.gateway.generation import UNKNOWN, Generation
from mooncake_core.gateway.metrics import GatewayMetrics
from mooncake_core.gateway.request_log import Entry, RequestLog
from mooncake_core.gateway.serving import Serving
from mooncake_core.gateway.stops import StopStrings
from mooncake_core.gateway.tokenizer import Detokenizer, Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """New text; the last one carries the finish reason."""

    text: str
    finish_reason: str | None
    token_ids: list[int]


class Completion:
    """A generation as text. The counts are right once `pieces` has ended."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        metrics: GatewayMetrics,
        log: RequestLog,
    ) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._stops = StopStrings(stops)
        self._metrics = metrics
        self._log = log
        self.output_tokens = 0
        self.cached_tokens = 0
        self.timings = UNKNOWN

    async def pieces(self, serving: Serving) -> AsyncGenerator[Piece, None]:
        """Text as it becomes certain. Closing the iterator frees everything the request holds."""
        entry = self._log.begin(self._generation)
        outcome = "cancelled"
        try:
            async with aclosing(self._pieces(serving, entry)) as pieces:
                async for piece in pieces:
                    outcome = piece.finish_reason or outcome
                    yield piece
        except MooncakeError as error:
            outcome = error.code
            raise
        finally:
            self._log.end(entry, outcome)

    async def _pieces(self, serving: Serving, entry: Entry) -> AsyncGenerator[Piece, None]:
        detokenizer = Detokenizer(self._tokenizer)
        before = time.monotonic()
        async with aclosing(serving.generate(self._generation)) as steps:
            async for step in steps:
                now = time.monotonic()
                entry.took(step)
                self.timings = step.timings
                self._observe(len(step.token_ids), step.cached_tokens, now - before)
                before = now
                ended = step.finish_reason == "stop"
                shown = step.token_ids[:-1] if ended else step.token_ids  # the token that ends it is no text
                text = "".join(self._stops.add(detokenizer.add(token_id)) for token_id in shown)
                if step.finish_reason and not self._stops.matched:
                    text += self._stops.add(detokenizer.finish()) + self._stops.finish()
                reason = "stop" if self._stops.matched else step.finish_reason
                yield Piece(text, reason, step.token_ids)
                if reason:
                    return

    def _observe(self, num_tokens: int, cached_tokens: int, gap_s: float) -> None:
        if self.output_tokens == 0:
            self.cached_tokens = cached_tokens
            self._metrics.ttft.observe(gap_s)
            self._metrics.prompt_tokens.inc(len(self._generation.token_ids))
            self._metrics.cached_tokens.inc(cached_tokens)
        else:
            self._metrics.tbt.observe(gap_s)
        self._metrics.output_tokens.inc(num_tokens)
        self.output_tokens += num_tokens
