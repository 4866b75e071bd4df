"""One attempt at a request: placed by the master, prefilled in one instance, decoded in another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from mooncake_core.errors import MooncakeError, PeerUnreachable
from mooncake_core.gateway.generation import Generation, Step, Timings
from mooncake_core.gateway.notices import Notices
from mooncake_core.kvcache.keys import block_keys, namespace, reusable_blocks
from mooncake_core.wire.client import Arrived, Client, Clients
from mooncake_core.wire.messages.serving import (
    Decode,
    Outcome,
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
"""After a prefill instance was lost, its KV may still have arrived: then the decode instance's first token is near."""


@dataclass(slots=True)
class Progress:
    """How far an attempt has come; kept when it fails, so that the next one continues."""

    emitted: list[int]
    """Tokens after the prompt, of all attempts."""
    outcome: Outcome = "cancelled"
    output_tokens: int = 0
    """Of this attempt."""


class Attempt:
    """Placed, it holds memory in a decode instance until `run` has ended."""

    def __init__(
        self, generation: Generation, request_id: str, progress: Progress, clients: Clients, notices: Notices
    ) -> None:
        self._generation = generation
        self.request_id = request_id
        self._progress = progress
        self._clients = clients
        self._notices = notices
        self._token_ids = [*generation.token_ids, *progress.emitted]
        self._sampling = msgspec.structs.replace(
            generation.sampling, max_tokens=generation.sampling.max_tokens - len(progress.emitted)
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
        )
        try:
            self._placed = await master.call(message, Placed, timeout_s=min(timeout_s, PLACE_TIMEOUT_S))
        except asyncio.CancelledError:  # the answer may be on its way, and memory held
            self._notices.send(master, RequestEnded(request_id=self.request_id, outcome="cancelled"))
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
                    self._progress.emitted += step.token_ids
                    self._progress.output_tokens += len(step.token_ids)
                    if step.finish_reason:
                        self._progress.outcome = "finished"  # its memory is released in any case
                    yield step
        except MooncakeError as error:
            self._progress.outcome = "failed"
            decode_lost = isinstance(error, PeerUnreachable) and self.failed_at == placed.decode
            raise
        finally:
            if self._lost is not None:
                self._lost.cancel()
            if not (decode_lost or self._decoded):
                self._notices.send(self._clients.get(placed.decode_address), Release(request_id=self.request_id))
            ended = RequestEnded(
                request_id=self.request_id,
                outcome=self._progress.outcome,
                output_tokens=self._progress.output_tokens,
            )
            self._notices.send(master, ended)

    async def _steps(self, placed: Placed, master: Client, deadline: float) -> AsyncGenerator[Step, None]:
        self.failed_at, self.failed_address = placed.prefill, placed.prefill_address
        prefill = self._clients.get(placed.prefill_address)
        lost = self._lost = prefill.lost()
        dispatched = time.monotonic()
        prefilled = await prefill.call(self._prefill(placed), Prefilled, timeout_s=deadline - time.monotonic())
        self._notices.send(
            master,
            PrefillEnded(
                request_id=self.request_id,
                cached_tokens=prefilled.cached_tokens,
                computed_s=prefilled.computed_s,
            ),
        )
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
            first = await self._first_tokens(replies, lost, placed)
            timings = msgspec.structs.replace(timings, exposed_s=first[0].exposed_s)
            self._decoded = first[-1].finish_reason is not None
            yield _step(first, prefilled.cached_tokens, timings)
            async for tokens in replies:
                self._decoded = tokens[-1].finish_reason is not None
                yield _step(tokens, prefilled.cached_tokens, timings)

    async def _first_tokens(
        self, replies: AsyncGenerator[Arrived[Tokens], None], lost: asyncio.Future[None], placed: Placed
    ) -> Arrived[Tokens]:
        """The first tokens of the decode instance. It waits for KV: a prefill instance that died will not send any."""
        first = asyncio.ensure_future(anext(replies))
        ends: list[asyncio.Future[Any]] = [first, lost]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                await asyncio.wait([first], timeout=LOST_GRACE_S)
            if first.done():
                return first.result()
        finally:
            if not first.done():
                first.cancel()
                with contextlib.suppress(BaseException):
                    await first
        self.failed_at, self.failed_address = placed.prefill, placed.prefill_address
        raise PeerUnreachable(f"prefill instance {placed.prefill} was lost before all KV had arrived")

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
