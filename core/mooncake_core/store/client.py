"""The client: puts and gets batches of objects, moving their bytes straight between the caller's memory and the nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mooncake_core.errors import MooncakeError
from mooncake_core.store.checksums import Choice
from mooncake_core.store.putting import Putting
from mooncake_core.store.reading import Reading
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.slices import total_bytes
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages.pool import (
    Exists,
    ExistsReply,
    Get,
    Got,
    NewObject,
    PutStart,
    PutStarted,
    Remove,
    RemoveAll,
    Removed,
    RemovedAll,
)
from mooncake_core.wire.messages.tiering import Prefetch, Prefetching

Pieces = Sequence[memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class PutObject:
    """An object to put: the bytes of its pieces in order. They must not change until `put` returns."""

    key: str
    pieces: Pieces
    parent: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


class StoreClient:
    """Reads and writes the pool. A full pool or a dead node is a result, not an exception; an unreachable master is one."""

    def __init__(self, master: Client, *, engine: TransferEngine, checksum: Choice = "auto") -> None:
        self._master = master
        self._engine = engine
        self._checksum = checksum

    async def put(
        self,
        objects: Sequence[PutObject],
        *,
        timeout_s: float,
        preferred_node: str = "",
        replicas: int = 1,
    ) -> list[str]:
        """Puts objects; one error code each, empty for success. `object_exists` means that it is, or soon will be, there."""
        wanted = [NewObject(key=item.key, size_bytes=item.size_bytes, parent=item.parent) for item in objects]
        putting = await self.begin_put(wanted, timeout_s=timeout_s, preferred_node=preferred_node, replicas=replicas)
        written = False
        try:
            await putting.write({index: item.pieces for index, item in enumerate(objects)})
            written = True
        finally:  # also when cancelled: the space must not wait for the writer's deadline
            codes = await asyncio.shield(putting.end(timeout_s=timeout_s, commit=written))
        return codes

    async def begin_put(
        self,
        wanted: Sequence[NewObject],
        *,
        timeout_s: float,
        preferred_node: str = "",
        replicas: int = 1,
        writing_s: float | None = None,
    ) -> Putting:
        """Space for objects that are then written part by part; the puts' `end` must follow.

        timeout_s is for the master's answer and for each write; writing_s, else timeout_s, for all writes together, which the
        master's own deadline for writers bounds in any case.
        """
        sent = time.monotonic()
        message = PutStart(objects=list(wanted), replicas=replicas, preferred_node=preferred_node)
        asked = asyncio.ensure_future(self._master.call(message, PutStarted, timeout_s=timeout_s))
        try:
            started = await asyncio.shield(asked)
        except asyncio.CancelledError:  # the master may have granted: the space must not wait for the writer's deadline
            with contextlib.suppress(MooncakeError):
                await Putting(self._master, self._engine, wanted, await asked, sent, timeout_s).end(
                    timeout_s=timeout_s, commit=False
                )
            raise
        deadline = sent + min(timeout_s if writing_s is None else writing_s, started.writer_deadline_s)
        return Putting(self._master, self._engine, wanted, started, deadline, timeout_s)

    async def get(self, keys: Sequence[str], destinations: Sequence[Pieces], *, timeout_s: float) -> list[bool]:
        """Reads objects into the destinations; whether each is there whole. Never leaves wrong bytes in one that is True."""
        reading = await self.begin_get(keys, timeout_s=timeout_s)
        sizes = [total_bytes(pieces) for pieces in destinations]
        reading.drop([index for index, size in enumerate(sizes) if reading.size_bytes(index) != size])
        parts = dict(enumerate(destinations))
        while parts:
            await reading.read(parts)
            parts = {index: destinations[index] for index in reading.damaged()}
        return reading.finish()

    async def begin_get(self, keys: Sequence[str], *, timeout_s: float) -> Reading:
        """Objects under a lease, to be read part by part."""
        sent = time.monotonic()
        got = await self._master.call(Get(keys=list(keys)), Got, timeout_s=timeout_s)
        return Reading(self._engine, got, sent + min(timeout_s, got.held_s + got.lease_s), checksum=self._checksum)

    async def exists(self, keys: Sequence[str], *, timeout_s: float) -> list[bool]:
        """Which objects can be read now. Takes no lease."""
        return (await self._master.call(Exists(keys=list(keys)), ExistsReply, timeout_s=timeout_s)).present

    async def prefetch(self, keys: Sequence[str], *, timeout_s: float) -> int:
        """Brings objects that are only in a tier (SSD, object storage) to DRAM, without reading them; how many of them."""
        return (await self._master.call(Prefetch(keys=list(keys)), Prefetching, timeout_s=timeout_s)).num_objects

    async def remove(self, keys: Sequence[str], *, timeout_s: float, force: bool = False) -> list[str]:
        """Removes objects; one error code each, empty for success."""
        message = Remove(keys=list(keys), force=force)
        return (await self._master.call(message, Removed, timeout_s=timeout_s)).refusals

    async def remove_all(self, *, timeout_s: float, force: bool = False) -> RemovedAll:
        """Removes every object; with `force` also leased ones, and puts under way come to nothing."""
        return await self._master.call(RemoveAll(force=force), RemovedAll, timeout_s=timeout_s)
