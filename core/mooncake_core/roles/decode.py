"""The decode role: holds memory for sequences, receives their KV, and produces tokens in a running batch."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass

from mooncake_core.conductor.role_planning import Role
from mooncake_core.errors import DeadlineExceeded, InvalidRequest, RequestCancelled, TransferError
from mooncake_core.inference.batching import Sequence
from mooncake_core.inference.loop import Output
from mooncake_core.roles.instance import Instance
from mooncake_core.roles.tasks import Tasks
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.serving import (
    AskKV,
    Decode,
    KVArrived,
    KVState,
    Release,
    Reservation,
    Reserve,
    Reserved,
    Tokens,
)
from mooncake_core.wire.server import Call, Handler


@dataclass(slots=True)
class Held:
    """Memory held for one request, from its reservation to its last token."""

    reservation_id: int
    sequence_id: int
    memory: SegmentDescriptor
    prompt_blocks: list[int]
    arrived: asyncio.Future[float]
    """The exposed transfer time, once all KV is there."""
    expiry: asyncio.TimerHandle | None = None


async def serve(instance: Instance) -> Role | None:
    """Serves until told to stop, or to take another role, which is returned."""
    role = DecodeRole(instance, transfer_timeout_s=instance.context.config.transfer.timeout)
    try:
        return await instance.serve("decode", role.handlers(), role.is_busy)
    finally:
        await role.close()


class DecodeRole:
    """Handlers of a decode instance. All run on one event loop."""

    def __init__(self, instance: Instance, *, transfer_timeout_s: float) -> None:
        self._instance = instance
        self._spans = instance.context.spans
        self._transfer_timeout_s = transfer_timeout_s
        self._held: dict[str, Held] = {}
        self._tasks = Tasks()

    def is_busy(self) -> bool:
        """Whether sequences hold memory."""
        return bool(self._held)

    def handlers(self) -> dict[type, Handler]:
        return {
            Reserve: self.reserve,
            Release: self.release,
            KVArrived: self.kv_arrived,
            AskKV: self.kv_state,
            Decode: self.decode,
        }

    def reserve(self, message: Reserve, call: Call) -> Reserved:
        """Holds blocks for prompt and answer; the writer may touch only those of the prompt."""
        if message.request_id in self._held:
            raise InvalidRequest(f"request {message.request_id} holds a reservation already")
        sequence_id = next(self._instance.sequence_ids)
        blocks = self._instance.loop.reserve(sequence_id, message.prompt_tokens + message.max_tokens)
        prompt_blocks = blocks[: self._instance.info.layout.blocks_for(message.prompt_tokens)]
        held = Held(
            reservation_id=secrets.randbits(63),
            sequence_id=sequence_id,
            memory=self._instance.export_blocks(prompt_blocks),
            prompt_blocks=prompt_blocks,
            arrived=asyncio.get_running_loop().create_future(),
        )
        held.expiry = asyncio.get_running_loop().call_later(message.ttl_s, self._free, message.request_id)
        self._held[message.request_id] = held
        return Reserved(
            reservation=Reservation(
                reservation_id=held.reservation_id,
                memory=held.memory,
                block_offsets=[block_id * self._instance.block_bytes for block_id in prompt_blocks],
            )
        )

    def release(self, message: Release, call: Call) -> Done:
        """Gives the memory back; a running sequence ends with RequestCancelled."""
        self._free(message.request_id)
        return Done()

    def kv_arrived(self, message: KVArrived, call: Call) -> Done:
        """The prefill instance has written everything, or says why it could not."""
        held = self._held_by(message.request_id, message.reservation_id)
        if not held.arrived.done():
            if message.error:
                held.arrived.set_exception(TransferError(message.error))
            else:
                held.arrived.set_result(max(0.0, time.time() - message.computed_at_s))
        return Done()

    def kv_state(self, message: AskKV, call: Call) -> KVState:
        """Whether the KV is there."""
        return KVState(arrived=self._held_by(message.request_id, message.reservation_id).arrived.done())

    async def decode(self, message: Decode, call: Call) -> Tokens | Done:
        """Waits for the KV, then replies with the tokens after the first one as they come; the last one ends it."""
        held = self._held_by(message.request_id, message.reservation_id)
        if held.expiry:
            held.expiry.cancel()
        try:
            exposed_s: float | None = await self._wait_for_kv(held, message.request_id, call)
            queued_at_s = time.time()

            last: Tokens | Done = Done()

            def reply(output: Output) -> None:
                nonlocal exposed_s, last
                if exposed_s is not None:
                    self._spans.add(message.request_id, "wait for engine", queued_at_s, output.started_s)
                self._spans.add_step(message.request_id, output.started_s, output.ended_s)
                tokens = Tokens(
                    token_ids=[output.token_id],
                    finish_reason=output.finish_reason,
                    exposed_s=exposed_s,
                    logprobs=[output.logprobs] if output.logprobs else [],
                )
                exposed_s = None
                if output.finish_reason:
                    last = tokens
                else:
                    call.reply(tokens)

            await self._instance.loop.run(self._sequence(held, message), reply)
            return last
        finally:
            self._free(message.request_id)

    async def close(self) -> None:
        """Lets everything go."""
        for request_id in list(self._held):
            self._free(request_id)
        await self._tasks.close()

    async def _wait_for_kv(self, held: Held, request_id: str, call: Call) -> float:
        """Returns how long after the end of the last layer all KV was there."""
        waiting = time.time()
        patience_s = min(call.remaining_s(), self._transfer_timeout_s)
        done, _ = await asyncio.wait([held.arrived], timeout=patience_s)
        if not done:
            raise DeadlineExceeded(f"the KV of request {request_id} did not arrive within {patience_s:.1f}s")
        exposed_s = held.arrived.result()
        self._instance.engine.stage_in(held.prompt_blocks)
        self._spans.add(request_id, "wait for KV", waiting, time.time(), exposed_s=exposed_s)
        return exposed_s

    def _sequence(self, held: Held, message: Decode) -> Sequence:
        return Sequence(
            sequence_id=held.sequence_id,
            token_ids=[message.first_token_id],
            start=message.prompt_tokens,
            sampling=message.sampling,
            max_new_tokens=message.sampling.max_tokens - 1,
            eos_token_ids=self._instance.info.eos_token_ids,
            priority=message.priority,
        )

    def _held_by(self, request_id: str, reservation_id: int) -> Held:
        held = self._held.get(request_id)
        if held is None or held.reservation_id != reservation_id:
            raise RequestCancelled(f"no memory is held for request {request_id}: it was released or has expired")
        return held

    def _free(self, request_id: str) -> None:
        held = self._held.pop(request_id, None)
        if held is None:
            return
        if held.expiry:
            held.expiry.cancel()
        if not held.arrived.done():
            held.arrived.set_exception(RequestCancelled(f"request {request_id} was released"))
        held.arrived.exception()  # seen, whether or not somebody waits for it
        self._tasks.start(self._let_go(held))

    async def _let_go(self, held: Held) -> None:
        # The writer is shut out before the blocks can be given to another sequence.
        await asyncio.to_thread(self._instance.transfer.withdraw, held.memory)
        self._instance.loop.release(held.sequence_id)
