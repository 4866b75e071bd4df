"""The prefill role: loads the cached prefix, computes the rest, hands the KV to the pool and to the decode instance."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from mooncake_core.conductor.role_planning import Role
from mooncake_core.config.processes import local_node_name
from mooncake_core.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    KVLost,
    MooncakeError,
    PeerUnreachable,
)
from mooncake_core.inference.batching import Sequence as TokenSequence
from mooncake_core.inference.loop import Output
from mooncake_core.kvcache.keys import pool_key
from mooncake_core.roles.instance import Instance
from mooncake_core.roles.kv_departure import POOL_TIMEOUT_S, PoolTarget
from mooncake_core.roles.kv_flow import KVFlow
from mooncake_core.roles.memory_line import MemoryLine
from mooncake_core.roles.tasks import Tasks
from mooncake_core.store.client import StoreClient
from mooncake_core.store.reading import Reading
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.serving import KVArrived, Prefill, Prefilled
from mooncake_core.wire.server import Call

NOTICE_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


async def serve(instance: Instance) -> Role | None:
    """Serves until told to stop, or to take another role, which is returned."""
    context = instance.context
    client = StoreClient(
        context.clients.get(context.master_address), engine=instance.transfer, checksum=context.config.pool.checksum
    )
    pool = context.config.pool
    target = PoolTarget(client, local_node_name(context.spec), pool.replicas, pool.writer_deadline)
    role = PrefillRole(instance, target)
    try:
        return await instance.serve("prefill", {Prefill: role.prefill}, role.is_busy)
    finally:
        await role.close()


class PrefillRole:
    """Handler of a prefill instance. Runs on one event loop."""

    def __init__(self, instance: Instance, pool: PoolTarget) -> None:
        self._instance = instance
        self._pool = pool
        self._spans = instance.context.spans
        self._line = MemoryLine(instance.loop.reserve)
        instance.loop.on_freed = self._line.freed
        self._deliveries = Tasks()
        self._running = 0

    def is_busy(self) -> bool:
        """Whether prompts are computed, or KV is still on its way."""
        return self._running > 0 or len(self._deliveries) > 0

    async def prefill(self, message: Prefill, call: Call) -> Prefilled:
        """As `_prefill`, counted."""
        self._running += 1
        try:
            return await self._prefill(message, call)
        finally:
            self._running -= 1

    async def _prefill(self, message: Prefill, call: Call) -> Prefilled:
        """Loads the prefix (s1), computes the rest (s2), and moves KV on as it comes (s3); what is still under way when
        the first token is known goes on after it was sent."""
        arrived = time.time()
        sequence_id = next(self._instance.sequence_ids)
        blocks = await self._reserve(sequence_id, message, call)
        reserved = time.time()
        self._spans.add(message.request_id, "wait for KV memory", arrived, reserved)
        flow: KVFlow | None = None
        handed_over = False
        try:
            reading = await self._locate(message)
            flow = KVFlow(self._instance, message, blocks, self._pool, reading)
            await flow.begin()
            fetched = time.time()
            output = await self._compute(sequence_id, message, flow)
            if output is None:
                flow = await self._anew(flow, message, blocks)
                output = await self._compute(sequence_id, message, flow)
            if output is None:
                raise EngineError(f"the engine ended request {message.request_id} without a token")
            self._deliveries.start(self._deliver(sequence_id, message, flow))
            handed_over = True
        finally:
            if not handed_over:
                self._deliveries.start(self._abandon(sequence_id, flow))
        # "length" means only that prefill's one token is chosen, unless the user asked for no more.
        more = output.finish_reason == "length" and message.sampling.max_tokens > 1
        return Prefilled(
            token_id=output.token_id,
            finish_reason=None if more else output.finish_reason,
            cached_tokens=flow.cached_blocks * self._instance.block_tokens,
            cached_tokens_by_tier=flow.cached_tokens_by_tier(),
            queued_s=reserved - arrived + max(0.0, time.time() - fetched - flow.engine_s),
            fetched_s=fetched - reserved,
            computed_s=flow.engine_s,
            logprobs=output.logprobs,
        )

    async def close(self) -> None:
        """Ends deliveries under way."""
        await self._deliveries.close()

    async def _reserve(self, sequence_id: int, message: Prefill, call: Call) -> list[int]:
        """Blocks for the prompt; waits in line while others hold them."""
        num_tokens = len(message.token_ids)
        needed = self._instance.info.layout.blocks_for(num_tokens)
        if needed > self._instance.info.num_blocks:
            raise InvalidRequest(
                f"the prompt needs {needed} blocks of KV memory, {self._instance.context.name} has "
                f"{self._instance.info.num_blocks}: raise engine.kv_memory"
            )
        try:
            async with asyncio.timeout(call.remaining_s()):
                return await self._line.reserve(sequence_id, num_tokens, message.priority)
        except TimeoutError as error:
            raise DeadlineExceeded("no KV memory became free for the prompt before the deadline") from error

    def _release(self, sequence_id: int) -> None:
        self._instance.loop.release(sequence_id)
        self._line.freed()

    async def _locate(self, message: Prefill) -> Reading | None:
        """Where the pool has the prefix; None when there is nothing to read, or nobody to ask."""
        keys = [pool_key(key) for key in message.block_keys[: message.max_cached_blocks]]
        if not keys:
            return None
        try:
            with self._spans.during(message.request_id, "locate prefix", blocks=len(keys), found=0) as span:
                reading = await self._pool.client.begin_get(keys, timeout_s=POOL_TIMEOUT_S)
                span.update(found=sum(reading.good))
                return reading
        except MooncakeError as error:
            _log.warning("the pool cannot be read, computing the whole prompt: %s", error)
            return None

    async def _anew(self, flow: KVFlow, message: Prefill, blocks: list[int]) -> KVFlow:
        """The prefix was lost on its way: everything is computed. What was sent must be over before it is sent again."""
        _log.warning("request %s computes its whole prompt: %s", message.request_id, flow.failure)
        await flow.abort()
        flow = KVFlow(self._instance, message, blocks, self._pool, None)
        await flow.begin()
        return flow

    async def _compute(self, sequence_id: int, message: Prefill, flow: KVFlow) -> Output | None:
        """The first token; None when the prefix was lost meanwhile."""
        start = flow.cached_blocks * self._instance.block_tokens
        sequence = TokenSequence(
            sequence_id=sequence_id,
            token_ids=message.token_ids[start:],
            start=start,
            sampling=message.sampling,
            max_new_tokens=1,
            eos_token_ids=self._instance.info.eos_token_ids,
            priority=message.priority,
        )
        outputs: list[Output] = []
        flow.queued_at_s = time.time()
        try:
            await self._instance.loop.run(sequence, outputs.append, flow)
        except KVLost:
            return None
        return outputs[0]

    async def _deliver(self, sequence_id: int, message: Prefill, flow: KVFlow) -> None:
        """Sees the KV off, then tells the decode instance; the blocks are free when the pool has them too."""
        try:
            await flow.delivered()
            await self._tell_decode(message, flow)
            await flow.pooled()
        finally:
            await self._abandon(sequence_id, flow)

    async def _abandon(self, sequence_id: int, flow: KVFlow | None) -> None:
        """Frees the blocks when nothing moves to or from them any more."""
        if flow is not None:
            await flow.abort()
        self._release(sequence_id)

    async def _tell_decode(self, message: Prefill, flow: KVFlow) -> None:
        notice = KVArrived(
            request_id=message.request_id,
            reservation_id=message.reservation.reservation_id,
            error=flow.departure_failure,
            computed_at_s=flow.computed_at_s,
        )
        client = self._instance.context.clients.get(message.decode_address)
        try:
            await client.call(notice, Done, timeout_s=NOTICE_TIMEOUT_S)
        except MooncakeError as error:  # the request was cancelled or the instance died; the gateway learns it there
            if isinstance(error, PeerUnreachable):  # what comes back has another address
                await self._instance.context.clients.drop(message.decode_address)
            _log.info("decode did not take the KV of %s: %s", message.request_id, error)
