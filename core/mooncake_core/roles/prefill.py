"""The prefill role: loads the cached prefix, computes the rest, hands the KV to the pool and to the decode instance."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from mooncake_core.config.processes import local_node_name
from mooncake_core.errors import DeadlineExceeded, EngineError, InvalidRequest, MooncakeError, NoSpace
from mooncake_core.inference.batching import Sequence as TokenSequence
from mooncake_core.kvcache.keys import pool_key
from mooncake_core.roles.context import RoleContext
from mooncake_core.roles.instance import Instance
from mooncake_core.roles.tasks import Tasks
from mooncake_core.store.client import PutObject, StoreClient
from mooncake_core.transfer.contract import Range
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.serving import FinishReason, KVArrived, Prefill, Prefilled
from mooncake_core.wire.server import Call

POOL_TIMEOUT_S: Final = 10.0
NOTICE_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


async def run(context: RoleContext) -> None:
    """Serves until told to stop."""
    instance = await Instance.load(context)
    pool = StoreClient(
        context.clients.get(context.master_address), engine=instance.transfer, checksum=context.config.pool.checksum
    )
    local_node = local_node_name(context.spec)
    role = PrefillRole(instance, pool, local_node=local_node, replicas=context.config.pool.replicas)
    try:
        await instance.serve({Prefill: role.prefill})
    finally:
        await role.close()
        await instance.close()


class PrefillRole:
    """Handler of a prefill instance. Runs on one event loop."""

    def __init__(self, instance: Instance, pool: StoreClient, *, local_node: str, replicas: int) -> None:
        self._instance = instance
        self._pool = pool
        self._local_node = local_node
        self._replicas = replicas
        self._sequence_ids = itertools.count(1)
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()
        self._deliveries = Tasks()

    async def prefill(self, message: Prefill, call: Call) -> Prefilled:
        """The four steps of design: (1) load the prefix, (2) compute the rest; (3), the hand-over of the KV, goes on
        after the first token has been sent."""
        arrived = time.monotonic()
        sequence_id = next(self._sequence_ids)
        blocks = await self._reserve(sequence_id, len(message.token_ids), call)
        handed_over = False
        try:
            queued = time.monotonic()
            cached_blocks = await self._load_prefix(message, blocks)
            fetched = time.monotonic()
            token_id, finish_reason = await self._compute(sequence_id, message, cached_blocks)
            computed = time.monotonic()
            self._deliveries.start(self._deliver(sequence_id, message, blocks, cached_blocks))
            handed_over = True
        finally:
            if not handed_over:
                self._release(sequence_id)
        return Prefilled(
            token_id=token_id,
            finish_reason=finish_reason,
            cached_tokens=cached_blocks * self._instance.block_tokens,
            queued_s=queued - arrived,
            fetched_s=fetched - queued,
            computed_s=computed - fetched,
        )

    async def close(self) -> None:
        """Ends deliveries under way."""
        await self._deliveries.close()

    async def _reserve(self, sequence_id: int, num_tokens: int, call: Call) -> list[int]:
        """Blocks for the prompt; waits in line, a long prompt before the short ones behind it, while others hold them."""
        needed = self._instance.info.layout.blocks_for(num_tokens)
        if needed > self._instance.info.num_blocks:
            raise InvalidRequest(
                f"the prompt needs {needed} blocks of KV memory, {self._instance.context.name} has "
                f"{self._instance.info.num_blocks}: raise engine.kv_memory"
            )
        try:
            async with asyncio.timeout(call.remaining_s()), self._turn:
                while True:
                    self._freed.clear()
                    try:
                        return self._instance.loop.reserve(sequence_id, num_tokens)
                    except NoSpace:
                        await self._freed.wait()
        except TimeoutError as error:
            raise DeadlineExceeded("no KV memory became free for the prompt before the deadline") from error

    def _release(self, sequence_id: int) -> None:
        self._instance.loop.release(sequence_id)
        self._freed.set()

    async def _load_prefix(self, message: Prefill, blocks: Sequence[int]) -> int:
        """Reads as much of the prefix as the pool has; returns the number of blocks that are in place."""
        keys = [pool_key(key) for key in message.block_keys[: message.max_cached_blocks]]
        if not keys:
            return 0
        destinations = [[self._instance.block(block)] for block in blocks[: len(keys)]]
        try:
            found = await self._pool.get(keys, destinations, timeout_s=POOL_TIMEOUT_S)
        except MooncakeError as error:
            _log.warning("the pool cannot be read, computing the whole prompt: %s", error)
            return 0
        matched = next((index for index, hit in enumerate(found) if not hit), len(found))
        self._instance.engine.stage_in(blocks[:matched])
        return matched

    async def _compute(self, sequence_id: int, message: Prefill, cached_blocks: int) -> tuple[int, FinishReason | None]:
        start = cached_blocks * self._instance.block_tokens
        sequence = TokenSequence(
            sequence_id=sequence_id,
            token_ids=message.token_ids[start:],
            start=start,
            sampling=message.sampling,
            max_new_tokens=1,
            eos_token_ids=self._instance.info.eos_token_ids,
        )
        async with aclosing(self._instance.loop.run(sequence)) as tokens:
            async for emitted in tokens:
                # "length" means only that prefill's one token is chosen, unless the user asked for no more.
                more = emitted.finish_reason == "length" and message.sampling.max_tokens > 1
                return emitted.token_id, None if more else emitted.finish_reason
        raise EngineError(f"the engine ended request {message.request_id} without a token")

    async def _deliver(self, sequence_id: int, message: Prefill, blocks: Sequence[int], cached_blocks: int) -> None:
        try:
            self._instance.engine.stage_out(blocks)
            await asyncio.gather(self._to_decode(message, blocks), self._to_pool(message, blocks, cached_blocks))
        finally:
            self._release(sequence_id)

    async def _to_decode(self, message: Prefill, blocks: Sequence[int]) -> None:
        reservation = message.reservation
        transfers = [
            ((self._instance.block(block),), (Range(offset, self._instance.block_bytes),))
            for block, offset in zip(blocks, reservation.block_offsets, strict=True)
        ]
        errors = await self._instance.transfer.write(reservation.memory, transfers)
        failed = next((str(error) for error in errors if error is not None), "")
        notice = KVArrived(request_id=message.request_id, reservation_id=reservation.reservation_id, error=failed)
        client = self._instance.context.clients.get(message.decode_address)
        try:
            await client.call(notice, Done, timeout_s=NOTICE_TIMEOUT_S)
        except MooncakeError as error:  # the request was cancelled or the instance died; the gateway learns it there
            _log.info("decode did not take the KV of %s: %s", message.request_id, error)

    async def _to_pool(self, message: Prefill, blocks: Sequence[int], cached_blocks: int) -> None:
        keys = [pool_key(key) for key in message.block_keys]
        objects = [
            PutObject(
                key=keys[index], pieces=[self._instance.block(blocks[index])], parent=keys[index - 1] if index else ""
            )
            for index in range(cached_blocks, len(keys))
        ]
        if not objects:
            return
        try:
            await self._pool.put(
                objects, preferred_node=self._local_node, replicas=self._replicas, timeout_s=POOL_TIMEOUT_S
            )
        except MooncakeError as error:  # never fails a request: its blocks are just not cached
            _log.warning("blocks of %s are not cached: %s", message.request_id, error)
