"""A request's KV on its way out: each layer of each chunk goes to the decode instance and into the pool while the next
one is computed (FAST'25, section 3.1, step s3)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mooncake_core.errors import MooncakeError
from mooncake_core.kvcache.keys import pool_key
from mooncake_core.roles.instance import Instance
from mooncake_core.store.client import StoreClient
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.wire.messages.pool import NewObject
from mooncake_core.wire.messages.serving import Prefill

POOL_TIMEOUT_S: Final = 10.0
LEAST_BYTES: Final = 1 << 20
"""Fewer wait for the next layer's: a transfer costs both ends the same work however little it carries."""
MOST_TRANSFERS: Final = 8
"""Of a chunk, to each of its two targets: what comes last is not under any computation, and small enough then."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolTarget:
    """Where a prefill instance's new blocks go."""

    client: StoreClient
    local_node: str
    replicas: int


@dataclass(slots=True)
class _ChunkPut:
    """The new blocks of one chunk on their way into the pool: ranges of layers, in order, as they are computed."""

    first_block: int
    last_block: int
    layers: asyncio.Queue[tuple[int, int]] = field(default_factory=asyncio.Queue)


class KVDeparture:
    """Sends a sequence's blocks, some layers at a time. Belongs to the event loop."""

    def __init__(
        self, instance: Instance, message: Prefill, blocks: Sequence[int], cached_blocks: int, pool: PoolTarget
    ) -> None:
        self._instance = instance
        self._message = message
        self._blocks = blocks
        self._cached_blocks = cached_blocks
        self._pool = pool
        self._layers = instance.info.layout.num_layers
        self._sent_blocks = cached_blocks
        self._first_unsent_layer = 0
        self._puts: dict[int, _ChunkPut] = {}
        self._to_decode: list[asyncio.Task[None]] = []
        self._to_pool: list[asyncio.Task[None]] = []
        self._ended = False
        self.failure = ""
        """Why the decode instance will not have all KV."""

    def prefix_arrived(self, first_layer: int, last_layer: int) -> None:
        """These layers of the cached prefix are here: they go on to the decode instance."""
        if self._ended:
            return
        self._send(0, self._cached_blocks, first_layer, last_layer)

    def computed(self, end: int, last_layer: int) -> None:
        """Layers before `last_layer` of all positions before `end` are here. Blocks go when they are full, or the prompt's
        last; layers when they are worth a transfer, or the last."""
        if self._ended:  # a step under way tells its layers even when the blocks are somebody else's by then
            return
        whole = end == len(self._message.token_ids)
        block_tokens = self._instance.block_tokens
        last = self._instance.info.layout.blocks_for(end) if whole else end // block_tokens
        first = self._sent_blocks
        all_bytes = (last - first) * self._layers * self._instance.layer_bytes
        num_bytes = all_bytes * (last_layer - self._first_unsent_layer) / self._layers
        is_worth_it = num_bytes >= max(LEAST_BYTES, all_bytes / MOST_TRANSFERS)
        if last <= first or (last_layer < self._layers and not is_worth_it):
            return
        self._send(first, last, self._first_unsent_layer, last_layer)
        self._put(first, min(last, len(self._message.block_keys)), self._first_unsent_layer, last_layer)
        self._first_unsent_layer = last_layer
        if last_layer == self._layers:
            self._first_unsent_layer, self._sent_blocks = 0, last

    async def delivered(self) -> None:
        """Waits until the decode instance has everything that was sent so far."""
        while any(not task.done() for task in self._to_decode):
            await asyncio.gather(*self._to_decode, return_exceptions=True)

    async def pooled(self) -> None:
        """Waits until the pool has everything."""
        await asyncio.gather(*self._to_pool, return_exceptions=True)

    async def abort(self) -> None:
        """Takes back what is not in the pool yet; returns when nothing reads the blocks any more, nor ever will."""
        self._ended = True
        tasks = [*self._to_pool, *self._to_decode]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _send(self, first: int, last: int, first_layer: int, last_layer: int) -> None:
        if first < last:
            self._to_decode.append(
                asyncio.get_running_loop().create_task(self._deliver(first, last, first_layer, last_layer))
            )

    async def _deliver(self, first: int, last: int, first_layer: int, last_layer: int) -> None:
        """Whatever goes wrong is a failure: decode must not begin on KV that is not there."""
        try:
            await self._write(first, last, first_layer, last_layer)
        except asyncio.CancelledError:
            self.failure = self.failure or "the request was given up"
            raise
        except Exception as error:
            _log.exception("KV of %s was not sent", self._message.request_id)
            self.failure = self.failure or str(error) or type(error).__name__

    async def _write(self, first: int, last: int, first_layer: int, last_layer: int) -> None:
        """One transfer carries these layers of all these blocks."""
        started = time.time()
        reservation = self._message.reservation
        layer_bytes = self._instance.layer_bytes
        near = [self._instance.layers(block, first_layer, last_layer) for block in self._blocks[first:last]]
        length = (last_layer - first_layer) * layer_bytes
        far = [Range(offset + first_layer * layer_bytes, length) for offset in reservation.block_offsets[first:last]]
        (transfer,) = await self._instance.transfer.transfer(Kind.WRITE, reservation.memory, [(near, far)])
        if transfer.error is not None:
            self.failure = self.failure or str(transfer.error)
        self._instance.context.spans.add(
            self._message.request_id,
            "send to decode",
            started,
            time.time(),
            first_layer=first_layer,
            layers=last_layer - first_layer,
            blocks=last - first,
            bytes=length * (last - first),
            path=transfer.path,
        )

    def _put(self, first: int, last: int, first_layer: int, last_layer: int) -> None:
        if first >= last:
            return
        put = self._puts.get(first)
        if put is None:
            put = self._puts[first] = _ChunkPut(first, last)
            self._to_pool.append(asyncio.get_running_loop().create_task(self._put_chunk(put)))
        put.layers.put_nowait((first_layer, last_layer))

    async def _put_chunk(self, put: _ChunkPut) -> None:
        try:
            await self._write_chunk(put)
        except MooncakeError as error:  # never fails a request: its blocks are just not cached
            _log.warning("blocks of %s are not cached: %s", self._message.request_id, error)
        except Exception:
            _log.exception("blocks of %s are not cached", self._message.request_id)

    async def _write_chunk(self, put: _ChunkPut) -> None:
        """One put for all blocks of the chunk: space is granted, layers are written as they come, all is committed."""
        started = time.time()
        keys = [pool_key(key) for key in self._message.block_keys[: put.last_block]]
        wanted = [
            NewObject(key=keys[index], size_bytes=self._instance.block_bytes, parent=keys[index - 1] if index else "")
            for index in range(put.first_block, put.last_block)
        ]
        putting = await self._pool.client.begin_put(
            wanted, timeout_s=POOL_TIMEOUT_S, preferred_node=self._pool.local_node, replicas=self._pool.replicas
        )
        granted = len(putting.granted)
        written = False
        try:
            last_layer = 0
            while granted and last_layer < self._layers:
                first_layer, last_layer = await put.layers.get()
                blocks = self._blocks[put.first_block : put.last_block]
                await putting.write(
                    {
                        index: [self._instance.layers(block, first_layer, last_layer)]
                        for index, block in enumerate(blocks)
                    }
                )
            written = True
        finally:  # also when cancelled: the space must not wait for the writer's deadline
            await asyncio.shield(putting.end(timeout_s=POOL_TIMEOUT_S, commit=written))
        self._instance.context.spans.add(
            self._message.request_id,
            "put to pool",
            started,
            time.time(),
            blocks=granted,
            bytes=granted * self._instance.block_bytes,
        )
