"""One choice of an answer: tokens of the cluster become text, until a stop string, the end, or a hang-up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from mooncake_core.errors import DeadlineExceeded, EngineError, MooncakeError
from mooncake_core.gateway.generation import UNKNOWN, Generation, Step
from mooncake_core.gateway.logprobs import Scored
from mooncake_core.gateway.metrics import GatewayMetrics
from mooncake_core.gateway.request_log import Entry, RequestLog
from mooncake_core.gateway.serving import Serving
from mooncake_core.gateway.stops import StopStrings
from mooncake_core.gateway.tokenizer import Detokenizer, Tokenizer
from mooncake_core.units import format_duration


@dataclass(frozen=True, slots=True)
class Piece:
    """New text; the last one carries the finish reason. Text may come later than the tokens it is made of."""

    text: str
    finish_reason: str | None
    token_ids: list[int]
    scored: list[Scored] = field(default_factory=list)
    """The tokens again, where log probabilities are asked for."""
    received: float = 0.0
    """time.monotonic() when the tokens came."""


class Completion:
    """A generation as text. The counts are right once `pieces` has ended."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        metrics: GatewayMetrics,
        log: RequestLog,
        *,
        echo: str = "",
    ) -> None:
        self._generation = generation
        self._deadline = time.monotonic() + generation.timeout_s
        self._detokenizer = Detokenizer(tokenizer, generation.token_ids)
        self._stops = StopStrings(stops)
        self._metrics = metrics
        self._log = log
        self._echo = echo
        self._text_length = len(echo)
        self.output_tokens = 0
        self.cached_tokens = 0
        self.timings = UNKNOWN

    async def pieces(self, serving: Serving) -> AsyncGenerator[Piece, None]:
        """Text as it becomes certain, after the text to be echoed. Closing the iterator frees everything the request holds.

        Raises:
            DeadlineExceeded: the request's time is over.
        """
        if self._generation.sampling.max_tokens == 0:  # nothing but the echo is asked for
            yield Piece(self._echo, "length", [])
            return
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
        before = time.monotonic()
        text = self._echo
        async with aclosing(serving.generate(self._generation)) as steps:
            while (step := await self._next(steps)) is not None:
                now = time.monotonic()
                piece = self._piece(step, text)
                if step.dispatched and self.output_tokens == 0:
                    self._metrics.dispatch.observe(step.dispatched - self._generation.arrived)
                entry.took(step, len(piece.token_ids))
                self.timings = step.timings
                self._observe(len(piece.token_ids), step.cached_tokens, now - before)
                before, text = now, ""
                yield piece
                if piece.finish_reason:
                    return

    async def _next(self, steps: AsyncGenerator[Step, None]) -> Step | None:
        """The next step, None when there is none; cut off at the deadline, whatever the cluster does."""
        try:
            async with asyncio.timeout_at(self._deadline):
                return await anext(steps, None)
        except TimeoutError as error:
            if isinstance(error, MooncakeError):
                raise
            given = format_duration(max(0.0, self._generation.timeout_s))
            raise DeadlineExceeded(f"the request has not ended within the {given} it had left") from error

    def _piece(self, step: Step, text: str) -> Piece:
        """What a step adds; `text` goes before it."""
        ended = step.finish_reason == "stop"
        scored = []
        token_ids: list[int] = []
        for index, token_id in enumerate(step.token_ids):
            if self._generation.sampling.logprobs >= 0:
                scored.append(self._scored(step, index))
            token_ids.append(token_id)
            if not (ended and index == len(step.token_ids) - 1):  # the token that ends it is no text
                certain = self._detokenizer.add(token_id)
                self._text_length += len(certain)
                text += self._stops.add(certain)
            if self._stops.matched:  # what came after it does not count
                return Piece(text, "stop", token_ids, scored, step.received)
        if step.finish_reason:
            text += self._stops.add(self._detokenizer.finish()) + self._stops.finish()
        finish_reason = "stop" if self._stops.matched else step.finish_reason
        return Piece(text, finish_reason, token_ids, scored, step.received)

    def _scored(self, step: Step, index: int) -> Scored:
        if len(step.logprobs) != len(step.token_ids):
            raise EngineError("the instance's engine tells no log probabilities: ask without logprobs")
        return Scored(step.token_ids[index], self._text_length, step.logprobs[index])

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
