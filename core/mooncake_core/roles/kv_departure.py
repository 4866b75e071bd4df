"""A request's KV on its way out: each layer of each chunk goes to the decode instance and into the pool while the next
one is computed (FAST'25, section 3.1, step s3)."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import MooncakeError
from mooncake_core.kvcache.keys import pool_key
from mooncake_core.roles.instance import Instance
from mooncake_core.store.client import StoreClient
from mooncake_core.store.putting import Putting
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.wire.messages.pool import NewObject
from mooncake_core.wire.messages.serving import Prefill

POOL_TIMEOUT_S: Final = 10.0
PUT_MARGIN: Final = 3.0
"""The writer's deadline is so many times the time that a put is expected to wait for layers."""
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
    writer_deadline_s: float
    """The pool's: a put that has not ended by then is taken back, and its node fenced."""


class _ChunkPut:
    """The new blocks of one chunk on their way into the pool, as far as they are computed."""

    def __init__(self, first_block: int, last_block: int, layers: int) -> None:
        self.first_block = first_block
        self.last_block = last_block
        self._layers = layers
        self._came: list[tuple[float, int]] = []
        """When so many layers were computed."""
        self._more = asyncio.Event()

    @property
    def num_layers(self) -> int:
        """Computed so far."""
        return self._came[-1][1] if self._came else 0

    def computed(self, num_layers: int) -> None:
        """So many layers are there."""
        self._came.append((time.monotonic(), num_layers))
        self._more.set()

    async def wait_for_more_than(self, num_layers: int) -> None:
        """Returns when more layers are there."""
        while self.num_layers <= num_layers:
            self._more.clear()
            await self._more.wait()

    async def wait_until_near(self, remaining_s: float) -> None:
        """Returns when the rest is likely to be computed in so little time."""
        while self._remaining_s() > remaining_s:
            await self.wait_for_more_than(self.num_layers)

    def _remaining_s(self) -> float:
        """By the pace of the layers since the first; nothing is known of it before a second time."""
        left = self._layers - self.num_layers
        if not left:
            return 0.0
        if len(self._came) < 2:
            return math.inf
        (first, before), (latest, now) = self._came[0], self._came[-1]
        return left * (latest - first) / (now - before)


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
        layer_bytes = (last - first) * self._instance.layer_bytes
        unsent_bytes = (last_layer - self._first_unsent_layer) * layer_bytes
        is_worth_it = unsent_bytes >= max(LEAST_BYTES, self._layers * layer_bytes / MOST_TRANSFERS)
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
            put = self._puts[first] = _ChunkPut(first, last, self._layers)
            self._to_pool.append(asyncio.get_running_loop().create_task(self._put_chunk(put)))
        put.computed(last_layer)

    async def _put_chunk(self, put: _ChunkPut) -> None:
        """Begins the put when the rest of the chunk is likely to be computed within a part of the writer's deadline: a put
        that is late costs not only itself, but fences its node and fails the others there. Nor is it extended, since the
        blocks keep what is computed. Where the estimate was wrong, all is written once more when all is there."""
        try:
            await put.wait_until_near(self._pool.writer_deadline_s / PUT_MARGIN)
            if not await self._write_chunk(put):
                await put.wait_until_near(0.0)
                await self._write_chunk(put)
        except MooncakeError as error:  # never fails a request: its blocks are just not cached
            _log.warning("blocks of %s are not cached: %s", self._message.request_id, error)
        except Exception:
            _log.exception("blocks of %s are not cached", self._message.request_id)

    async def _write_chunk(self, put: _ChunkPut) -> bool:
        """One put for all blocks of the chunk: space is granted, layers are written as they come, all is committed. Whether
        they came in time."""
        started = time.time()
        putting = await self._pool.client.begin_put(
            self._objects(put),
            timeout_s=POOL_TIMEOUT_S,
            preferred_node=self._pool.local_node,
            replicas=self._pool.replicas,
            writing_s=self._pool.writer_deadline_s,
        )
        granted = len(putting.granted)
        written = False
        try:
            async with asyncio.timeout(putting.deadline - time.monotonic()):
                await self._write_layers(put, putting)
            written = True
        except TimeoutError:
            _log.info("layers of %s came too late for their put: it begins anew", self._message.request_id)
        finally:  # also when cancelled: the space must not wait for the writer's deadline
            await asyncio.shield(putting.end(timeout_s=POOL_TIMEOUT_S, commit=written))
        if written:
            self._instance.context.spans.add(
                self._message.request_id,
                "put to pool",
                started,
                time.time(),
                blocks=granted,
                bytes=granted * self._instance.block_bytes,
                path="+".join(putting.bytes_by_path),
            )
        return written

    def _objects(self, put: _ChunkPut) -> list[NewObject]:
        keys = [pool_key(key) for key in self._message.block_keys[: put.last_block]]
        return [
            NewObject(key=keys[index], size_bytes=self._instance.block_bytes, parent=keys[index - 1] if index else "")
            for index in range(put.first_block, put.last_block)
        ]

    async def _write_layers(self, put: _ChunkPut, putting: Putting) -> None:
        blocks = self._blocks[put.first_block : put.last_block]
        written = 0
        while putting.granted and written < self._layers:
            await put.wait_for_more_than(written)
            first, written = written, put.num_layers
            await putting.write(
                {index: [self._instance.layers(block, first, written)] for index, block in enumerate(blocks)}
            )
