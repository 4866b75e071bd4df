"""Requests served by a cluster: attempt after attempt, until one has brought the last token."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, Protocol

import msgspec

from mooncake_core.errors import ContextTooLong, InvalidRequest, MooncakeError, PeerUnreachable
from mooncake_core.gateway.attempt import Attempt
from mooncake_core.gateway.generation import Generation, Step
from mooncake_core.gateway.notices import Notices
from mooncake_core.gateway.retry import Retry
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.client import Client, Clients
from mooncake_core.wire.messages.inspection import GetStatus, Status
from mooncake_core.wire.messages.membership import ModelOffer
from mooncake_core.wire.messages.serving import DescribeModels, Models

MODELS_FRESH_S: Final = 1.0
MASTER_TIMEOUT_S: Final = 5.0
MOST_AVOIDED: Final = 4

_log = logging.getLogger(__name__)


class Serving(Protocol):
    """What the HTTP part needs of the cluster."""

    async def models(self) -> list[ModelOffer]:
        """The models that can be served now."""

    async def missing(self) -> list[str]:
        """What is needed, in words, before anything can be served."""

    def generate(self, generation: Generation) -> AsyncGenerator[Step, None]:
        """Tokens as they come. Closing the iterator frees what the request holds, everywhere."""


class ClusterServing:
    """Serving by a real cluster. An instance that is lost costs time, not the request: it goes on elsewhere, token for
    token, since sampling depends on seed and position only."""

    def __init__(self, master: Client, clients: Clients, spans: Spans, *, patience_s: float) -> None:
        self._master = master
        self._clients = clients
        self._spans = spans
        self._patience_s = patience_s
        self._models: list[ModelOffer] = []
        self._models_at = float("-inf")
        self._notices = Notices()

    async def models(self) -> list[ModelOffer]:
        """Those that could be served when the cluster was last able to: a request waits for those who are to be back."""
        if time.monotonic() - self._models_at > MODELS_FRESH_S or not self._models:
            try:
                found = (await self._master.call(DescribeModels(), Models, timeout_s=MASTER_TIMEOUT_S)).models
            except MooncakeError:
                if not self._models:
                    raise
                found = []
            self._models = found or self._models
            self._models_at = time.monotonic()
        return self._models

    async def missing(self) -> list[str]:
        status = await self._master.call(GetStatus(), Status, timeout_s=MASTER_TIMEOUT_S)
        return status.serving_needs or status.missing

    async def generate(self, generation: Generation) -> AsyncGenerator[Step, None]:
        deadline = time.monotonic() + generation.timeout_s
        retry = Retry(deadline=deadline, patience_s=self._patience_s)
        emitted: list[int] = []
        avoid: list[str] = []
        attempts = 0
        cached_tokens: int | None = None
        while True:
            attempts += 1
            request_id = generation.request_id if attempts == 1 else f"{generation.request_id}.{attempts}"
            attempt = Attempt(generation, request_id, emitted, self._clients, self._notices)
            if not await self._place(attempt, retry, avoid, deadline):
                continue
            try:
                async with aclosing(attempt.run(self._master, deadline)) as steps:
                    async for step in steps:
                        retry.advanced()
                        cached_tokens = step.cached_tokens if cached_tokens is None else cached_tokens
                        timings = msgspec.structs.replace(step.timings, attempts=attempts)
                        yield dataclasses.replace(step, cached_tokens=cached_tokens, timings=timings)
                return
            except MooncakeError as error:
                delay_s = retry.after_failure(error, time.monotonic())
                if delay_s is None:
                    raise
                _log.warning("request %s goes on elsewhere after %s: %s", request_id, attempt.failed_at, error)
                avoid = [*avoid, attempt.failed_at][-MOST_AVOIDED:]
                await self._forget_lost(attempt, error)
                await self._wait(request_id, delay_s, str(error))

    async def close(self) -> None:
        """Sends what is still to be said."""
        await self._notices.close()

    async def _place(self, attempt: Attempt, retry: Retry, avoid: Sequence[str], deadline: float) -> bool:
        """Whether instances were found; otherwise it has waited, and is to be tried again."""
        try:
            with self._spans.during(attempt.request_id, "place") as span:
                placed = await attempt.place(self._master, avoid=avoid, timeout_s=deadline - time.monotonic())
                span.update(
                    prefill=placed.prefill,
                    decode=placed.decode,
                    matched_tokens=placed.matched_tokens,
                    expected_ttft_s=placed.expected_ttft_s,
                    expected_tbt_s=placed.expected_tbt_s,
                )
        except MooncakeError as error:
            delay_s = retry.after_refusal(error, time.monotonic())
            if delay_s is None:
                raise
            await self._wait(attempt.request_id, delay_s, str(error))
            return False
        retry.placed()
        return True

    async def _wait(self, request_id: str, delay_s: float, reason: str) -> None:
        with self._spans.during(request_id, "wait to try again", reason=reason):
            await asyncio.sleep(delay_s)

    async def _forget_lost(self, attempt: Attempt, error: MooncakeError) -> None:
        """A process that comes back has another address: nobody needs the old connection."""
        if isinstance(error, PeerUnreachable) and attempt.failed_address:
            await self._clients.drop(attempt.failed_address)


def check_length(model: ModelOffer, token_ids: Sequence[int], max_tokens: int | None, default: int | None) -> int:
    """The number of tokens to generate.

    Raises:
        ContextTooLong: prompt and answer exceed the model's context; says the numbers.
        InvalidRequest: the prompt is empty, or names a token that is none.
    """
    prompt_tokens, context = len(token_ids), model.max_context_tokens
    if not token_ids:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if not 0 <= min(token_ids) <= max(token_ids) < model.vocab_size:
        raise InvalidRequest(f"expected token ids from 0 to {model.vocab_size - 1}", param="prompt")
    room = context - prompt_tokens
    if room < 1 or (max_tokens or 1) > room:
        raise ContextTooLong(
            f"the model's context is {context} tokens, the prompt has {prompt_tokens}"
            + (f" and max_tokens asks for {max_tokens} more" if max_tokens else "")
            + ": shorten one of them",
            param="max_tokens" if max_tokens and room >= 1 else "prompt",
        )
    return max_tokens or min(room, default or room)
