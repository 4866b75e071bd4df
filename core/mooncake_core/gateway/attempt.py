"""One attempt at a request: placed by the master, prefilled in one instance, decoded in another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec

from mooncake_core.errors import MooncakeError, PeerUnreachable, RequestRejected
from mooncake_core.gateway.generation import Generation, Step, Timings
from mooncake_core.gateway.notices import Notices
from mooncake_core.kvcache.keys import block_keys, namespace, reusable_blocks
from mooncake_core.wire.client import Arrived, Client, Clients
from mooncake_core.wire.messages.envelope import Done, Ping
from mooncake_core.wire.messages.serving import (
    AskKV,
    Decode,
    KVState,
    Place,
    Placed,
    Prefill,
    Prefilled,
    PrefillEnded,
    Release,
    RequestEnded,
    Tokens,
)

PLACE_TIMEOUT_S: Final = 30.0
LOST_GRACE_S: Final = 0.3
"""What a prefill instance sent last may still be on its way when the connection to it breaks."""
ANSWER_S: Final = 3.0
"""How long an instance may take to say that it is there, or has the KV, and the master, that a request may decode."""

_log = logging.getLogger(__name__)


class Attempt:
    """Placed, it holds memory in a decode instance until `run` has ended."""

    def __init__(
        self, generation: Generation, request_id: str, emitted: list[int], clients: Clients, notices: Notices
    ) -> None:
        """`emitted` are the tokens after the prompt, of all attempts: this one continues them."""
        self._generation = generation
        self.request_id = request_id
        self._emitted = emitted
        self._clients = clients
        self._notices = notices
        self._token_ids = [*generation.token_ids, *emitted]
        self._sampling = msgspec.structs.replace(
            generation.sampling, max_tokens=generation.sampling.max_tokens - len(emitted)
        )
        space = namespace(generation.model.fingerprint, tenant=generation.tenant, cache_salt=generation.cache_salt)
        self._keys = block_keys(space, self._token_ids, generation.model.block_tokens)
        self._placed: Placed | None = None
        self._lost: asyncio.Future[None] | None = None
        self._decoded = False
        """The decode instance has ended it, and let its memory go."""
        self.failed_at = ""
        """Name of the instance that an error came from."""
        self.failed_address = ""

    async def place(self, master: Client, *, avoid: Sequence[str], timeout_s: float) -> Placed:
        """Has the Conductor choose the instances."""
        block_tokens = self._generation.model.block_tokens
        message = Place(
            request_id=self.request_id,
            model=self._generation.model.name,
            fingerprint=self._generation.model.fingerprint,
            prompt_tokens=len(self._token_ids),
            max_tokens=self._sampling.max_tokens,
            block_keys=self._keys[: reusable_blocks(len(self._token_ids), block_tokens)],
            tenant=self._generation.tenant,
            priority=self._generation.priority,
            avoid=list(avoid),
            deadline_s=timeout_s,
            resumed=bool(self._emitted),
        )
        try:
            self._placed = await master.call(message, Placed, timeout_s=min(timeout_s, PLACE_TIMEOUT_S))
        except asyncio.CancelledError:  # the answer may be on its way, and memory held
            self._notices.send(master, RequestEnded(request_id=self.request_id))
            raise
        return self._placed

    async def run(self, master: Client, deadline: float) -> AsyncGenerator[Step, None]:
        """The tokens, as they come. Whatever happens, what the attempt holds is freed at the end."""
        placed = self._placed
        assert placed is not None  # place comes first
        decode_lost = False
        try:
            async with aclosing(self._steps(placed, master, deadline)) as steps:
                async for step in steps:
                    self._emitted += step.token_ids
                    yield step
        except MooncakeError as error:
            decode_lost = isinstance(error, PeerUnreachable) and self.failed_at == placed.decode
            raise
        finally:
            if self._lost is not None:
                self._lost.cancel()
            if not (decode_lost or self._decoded):
                self._notices.send(self._clients.get(placed.decode_address), Release(request_id=self.request_id))
            ended = RequestEnded(
                request_id=self.request_id,
                released=self._decoded,
                output_tokens=len(self._emitted) if self._decoded else 0,
            )
            self._notices.send(master, ended)

    async def _steps(self, placed: Placed, master: Client, deadline: float) -> AsyncGenerator[Step, None]:
        self.failed_at, self.failed_address = placed.prefill, placed.prefill_address
        prefill = self._clients.get(placed.prefill_address)
        self._lost = prefill.lost()
        dispatched = time.monotonic()
        prefilled = await prefill.call(self._prefill(placed), Prefilled, timeout_s=deadline - time.monotonic())
        await self._report(prefilled, placed, master)
        timings = Timings(queued_s=prefilled.queued_s, fetched_s=prefilled.fetched_s, computed_s=prefilled.computed_s)
        logprobs = [prefilled.logprobs] if prefilled.logprobs else []
        yield Step(
            [prefilled.token_id],
            prefilled.finish_reason,
            prefilled.cached_tokens,
            timings,
            logprobs,
            received=time.monotonic(),
            dispatched=dispatched,
        )
        if prefilled.finish_reason:
            return
        self.failed_at, self.failed_address = placed.decode, placed.decode_address
        client = self._clients.get(placed.decode_address)
        stream = client.stream(self._decode(placed, prefilled), Tokens, timeout_s=deadline - time.monotonic())
        async with aclosing(stream) as replies:
            first = await self._first_tokens(replies, prefill, placed)
            timings = msgspec.structs.replace(timings, exposed_s=first[0].exposed_s)
            self._decoded = first[-1].finish_reason is not None
            yield _step(first, prefilled.cached_tokens, timings)
            async for tokens in replies:
                self._decoded = tokens[-1].finish_reason is not None
                yield _step(tokens, prefilled.cached_tokens, timings)

    async def _report(self, prefilled: Prefilled, placed: Placed, master: Client) -> None:
        """Tells the master of the first token.

        Raises:
            RequestRejected: the decode instance would become too slow; the client has nothing yet.
        """
        message = PrefillEnded(
            request_id=self.request_id,
            cached_tokens=prefilled.cached_tokens,
            computed_s=prefilled.computed_s,
            finished=prefilled.finish_reason is not None,
            cached_tokens_by_tier=prefilled.cached_tokens_by_tier,
        )
        if not placed.checked_at_decode or message.finished or self._emitted:
            self._notices.send(master, message)
            return
        try:
            await master.call(message, Done, timeout_s=ANSWER_S)
        except RequestRejected:
            raise
        except MooncakeError as error:  # a master that is away turns nobody away
            _log.info("%s goes on unchecked: %s", self.request_id, error)

    async def _first_tokens(
        self, replies: AsyncGenerator[Arrived[Tokens], None], prefill: Client, placed: Placed
    ) -> Arrived[Tokens]:
        """The first tokens of the decode instance, however slow it is. It waits for KV, which a prefill instance that died
        will not send any more; one whose connection broke may have sent it, or live on."""
        first = asyncio.ensure_future(anext(replies))
        try:
            while True:
                ends: list[asyncio.Future[Any]] = [first, self._lost or first]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if first.done() or await self._has_kv(placed):
                    return await first
                self._lost = prefill.lost()
                if not await _answers(prefill) and not first.done():
                    break
        finally:
            if not first.done():
                first.cancel()
                with contextlib.suppress(BaseException):
                    await first
        self.failed_at, self.failed_address = placed.prefill, placed.prefill_address
        raise PeerUnreachable(f"prefill instance {placed.prefill} was lost before all KV had arrived")

    async def _has_kv(self, placed: Placed) -> bool:
        """Whether the decode instance has the KV, a little later at the latest. One that does not say so is not asked again:
        its stream tells what is wrong."""
        question = AskKV(request_id=self.request_id, reservation_id=placed.reservation.reservation_id)
        client = self._clients.get(placed.decode_address)
        try:
            if (await client.call(question, KVState, timeout_s=ANSWER_S)).arrived:
                return True
            await asyncio.sleep(LOST_GRACE_S)
            return (await client.call(question, KVState, timeout_s=ANSWER_S)).arrived
        except MooncakeError:
            return True

    def _prefill(self, placed: Placed) -> Prefill:
        readable = placed.matched_tokens // self._generation.model.block_tokens
        return Prefill(
            request_id=self.request_id,
            token_ids=self._token_ids,
            block_keys=self._keys if self._generation.store else self._keys[:readable],
            max_cached_blocks=readable,
            sampling=self._sampling,
            priority=self._generation.priority,
            decode_address=placed.decode_address,
            reservation=placed.reservation,
            by_layer=self._generation.by_layer,
        )

    def _decode(self, placed: Placed, prefilled: Prefilled) -> Decode:
        return Decode(
            request_id=self.request_id,
            reservation_id=placed.reservation.reservation_id,
            prompt_tokens=len(self._token_ids),
            first_token_id=prefilled.token_id,
            sampling=self._sampling,
            priority=self._generation.priority,
        )


async def _answers(client: Client) -> bool:
    """Whether an instance is there."""
    try:
        await client.call(Ping(), Done, timeout_s=ANSWER_S)
    except MooncakeError:
        return False
    return True


def _step(messages: Arrived[Tokens], cached_tokens: int, timings: Timings) -> Step:
    """What came together goes on together."""
    if len(messages) == 1:
        (message,) = messages
        return Step(
            message.token_ids, message.finish_reason, cached_tokens, timings, message.logprobs, messages.received
        )
    return Step(
        [token_id for message in messages for token_id in message.token_ids],
        messages[-1].finish_reason,
        cached_tokens,
        timings,
        [logprobs for message in messages for logprobs in message.logprobs],
        messages.received,
    )
