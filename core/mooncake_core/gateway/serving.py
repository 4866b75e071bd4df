"""A request's way through the cluster: placed by the master, prefilled in one instance, decoded in another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mooncake_core.errors import ContextTooLong, InvalidRequest, MooncakeError
from mooncake_core.kvcache.keys import block_keys, namespace, reusable_blocks
from mooncake_core.wire.client import Client, Clients
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.inspection import GetStatus, Status
from mooncake_core.wire.messages.membership import ModelOffer
from mooncake_core.wire.messages.serving import (
    Decode,
    DescribeModels,
    FinishReason,
    Models,
    Outcome,
    Place,
    Placed,
    Prefill,
    Prefilled,
    PrefillEnded,
    Release,
    RequestEnded,
    Sampling,
    Tokens,
)

MODELS_FRESH_S: Final = 1.0
MASTER_TIMEOUT_S: Final = 5.0
NOTICE_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What is to be generated."""

    request_id: str
    model: ModelOffer
    token_ids: Sequence[int]
    sampling: Sampling
    cache_salt: str = ""
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens. The first step of a generation also says how much of the prompt came from the cache."""

    token_ids: list[int]
    finish_reason: FinishReason | None
    cached_tokens: int


class Serving(Protocol):
    """What the HTTP part needs of the cluster."""

    async def models(self) -> list[ModelOffer]:
        """The models that can be served now."""

    async def missing(self) -> list[str]:
        """What is needed, in words, before anything can be served."""

    def generate(self, generation: Generation) -> AsyncGenerator[Step, None]:
        """Tokens as they come. Closing the iterator frees what the request holds, everywhere."""


class ClusterServing:
    """Serving by a real cluster."""

    def __init__(self, master: Client, clients: Clients) -> None:
        self._master = master
        self._clients = clients
        self._models: list[ModelOffer] = []
        self._models_at = float("-inf")
        self._notices: set[asyncio.Task[None]] = set()

    async def models(self) -> list[ModelOffer]:
        if time.monotonic() - self._models_at > MODELS_FRESH_S or not self._models:
            self._models = (await self._master.call(DescribeModels(), Models, timeout_s=MASTER_TIMEOUT_S)).models
            self._models_at = time.monotonic()
        return self._models

    async def missing(self) -> list[str]:
        return (await self._master.call(GetStatus(), Status, timeout_s=MASTER_TIMEOUT_S)).missing

    async def generate(self, generation: Generation) -> AsyncGenerator[Step, None]:
        deadline = time.monotonic() + generation.timeout_s
        keys = _keys(generation)
        placed = await self._place(generation, keys)
        ended = _Ending(placed)
        try:
            async with aclosing(self._run(generation, keys, placed, deadline, ended)) as steps:
                async for step in steps:
                    yield step
        except MooncakeError:
            ended.outcome = "failed"
            raise
        finally:
            self._notify(self._finish(ended))

    async def close(self) -> None:
        """Sends what is still to be said."""
        await asyncio.gather(*self._notices, return_exceptions=True)

    async def _place(self, generation: Generation, keys: list[bytes]) -> Placed:
        prompt_tokens = len(generation.token_ids)
        message = Place(
            request_id=generation.request_id,
            model=generation.model.name,
            prompt_tokens=prompt_tokens,
            max_tokens=generation.sampling.max_tokens,
            block_keys=keys[: reusable_blocks(prompt_tokens, generation.model.block_tokens)],
            deadline_s=generation.timeout_s,
        )
        return await self._master.call(message, Placed, timeout_s=min(generation.timeout_s, 30.0))

    async def _run(
        self, generation: Generation, keys: list[bytes], placed: Placed, deadline: float, ended: _Ending
    ) -> AsyncGenerator[Step, None]:
        prefilled = await self._prefill(generation, keys, placed, deadline)
        notice = PrefillEnded(
            request_id=placed.request_id, cached_tokens=prefilled.cached_tokens, computed_s=prefilled.computed_s
        )
        self._notify(self._tell(self._master, notice))
        ended.output_tokens = 1
        if prefilled.finish_reason:
            ended.outcome = "finished"  # nothing is left for the decode instance: its memory is released at the end
        yield Step([prefilled.token_id], prefilled.finish_reason, prefilled.cached_tokens)
        if prefilled.finish_reason:
            return
        decode = Decode(
            request_id=placed.request_id,
            reservation_id=placed.reservation.reservation_id,
            prompt_tokens=len(generation.token_ids),
            first_token_id=prefilled.token_id,
            sampling=generation.sampling,
        )
        client = self._clients.get(placed.decode_address)
        async with aclosing(client.stream(decode, Tokens, timeout_s=deadline - time.monotonic())) as stream:
            async for tokens in stream:
                ended.output_tokens += len(tokens.token_ids)
                if tokens.finish_reason:
                    ended.outcome = "finished"
                yield Step(tokens.token_ids, tokens.finish_reason, prefilled.cached_tokens)

    async def _prefill(self, generation: Generation, keys: list[bytes], placed: Placed, deadline: float) -> Prefilled:
        message = Prefill(
            request_id=placed.request_id,
            token_ids=list(generation.token_ids),
            block_keys=keys,
            max_cached_blocks=placed.matched_tokens // generation.model.block_tokens,
            sampling=generation.sampling,
            decode_address=placed.decode_address,
            reservation=placed.reservation,
        )
        client = self._clients.get(placed.prefill_address)
        return await client.call(message, Prefilled, timeout_s=deadline - time.monotonic())

    async def _finish(self, ended: _Ending) -> None:
        """Frees the decode instance's memory at once, whatever the master does, then tells the master."""
        placed = ended.placed
        decode = self._clients.get(placed.decode_address)
        await asyncio.gather(
            self._tell(decode, Release(request_id=placed.request_id)),
            self._tell(
                self._master,
                RequestEnded(request_id=placed.request_id, outcome=ended.outcome, output_tokens=ended.output_tokens),
            ),
        )

    async def _tell(self, client: Client, message: Message) -> None:
        try:
            await client.call(message, Done, timeout_s=NOTICE_TIMEOUT_S)
        except MooncakeError as error:  # deadlines at the other end make up for it
            _log.warning("%s did not take %s: %s", client.address, type(message).__name__, error)

    def _notify(self, notice: Coroutine[Any, Any, None]) -> None:
        """Sends a notice beside the stream of tokens, even if the request was cancelled."""
        task = asyncio.get_running_loop().create_task(notice)
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)


class _Ending:
    """How a request has gone so far."""

    def __init__(self, placed: Placed) -> None:
        self.placed = placed
        self.outcome: Outcome = "cancelled"
        self.output_tokens = 0


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


def _keys(generation: Generation) -> list[bytes]:
    space = namespace(generation.model.fingerprint, cache_salt=generation.cache_salt)
    return block_keys(space, generation.token_ids, generation.model.block_tokens)
