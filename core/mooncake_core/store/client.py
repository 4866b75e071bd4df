"""The client: puts and gets batches of objects, moving their bytes straight between the caller's memory and the nodes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from mooncake_core.errors import ChecksumMismatch, MooncakeError
from mooncake_core.store.layout import (
    SLOT_BYTES,
    Header,
    Slot,
    SlotState,
    pack_header,
    pack_slot,
    unpack_header,
)
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import (
    Commit,
    Exists,
    ExistsReply,
    Get,
    Got,
    Grant,
    Located,
    NewObject,
    Placement,
    PutEnd,
    PutEnded,
    PutStart,
    PutStarted,
    Remove,
    RemoveAll,
    Removed,
    RemovedAll,
)

CHECKSUM_ON_LOOP_BYTES: Final = 256 << 10
"""Larger sums are computed in a thread: xxhash runs without the interpreter lock."""

_log = logging.getLogger(__name__)

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

    def __init__(self, master: Client, *, engine: TransferEngine, checksum: bool = True) -> None:
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
        sent = time.monotonic()
        wanted = [NewObject(key=item.key, size_bytes=item.size_bytes, parent=item.parent) for item in objects]
        message = PutStart(objects=wanted, replicas=replicas, preferred_node=preferred_node)
        started = await self._master.call(message, PutStarted, timeout_s=timeout_s)
        granted = [(item, grant) for item, grant in zip(objects, started.grants, strict=True) if grant.placements]
        deadline = sent + min(timeout_s, started.writer_deadline_s)
        written: dict[int, int] = {}
        try:
            if granted:
                written = await self._write(granted, started, deadline)
        finally:  # also when cancelled: the space must not wait for the writer's deadline
            refusals = await asyncio.shield(self._end(started, granted, written, timeout_s))
        return [grant.refusal or refusals[grant.allocation_id] for grant in started.grants]

    async def get(self, keys: Sequence[str], destinations: Sequence[Pieces], *, timeout_s: float) -> list[bool]:
        """Reads objects into the destinations; whether each is there whole. Never leaves wrong bytes in one that is True."""
        sent = time.monotonic()
        got = await self._master.call(Get(keys=list(keys)), Got, timeout_s=timeout_s)
        deadline = sent + min(timeout_s, got.lease_s)
        results = [False] * len(keys)
        wanted = {
            index: found
            for index, (found, pieces) in enumerate(zip(got.objects, destinations, strict=True))
            if found is not None and found.size_bytes == sum(piece.nbytes for piece in pieces)
        }
        for attempt in range(max((len(found.placements) for found in wanted.values()), default=0)):
            left = {index: found for index, found in wanted.items() if not results[index]}
            await self._read(left, attempt, destinations, got, deadline, results)
        return results

    async def exists(self, keys: Sequence[str], *, timeout_s: float) -> list[bool]:
        """Which objects can be read now. Takes no lease."""
        return (await self._master.call(Exists(keys=list(keys)), ExistsReply, timeout_s=timeout_s)).present

    async def remove(self, keys: Sequence[str], *, timeout_s: float, force: bool = False) -> list[str]:
        """Removes objects; one error code each, empty for success."""
        message = Remove(keys=list(keys), force=force)
        return (await self._master.call(message, Removed, timeout_s=timeout_s)).refusals

    async def remove_all(self, *, timeout_s: float, force: bool = False) -> RemovedAll:
        """Removes every object."""
        return await self._master.call(RemoveAll(force=force), RemovedAll, timeout_s=timeout_s)

    async def _write(
        self, granted: Sequence[tuple[PutObject, Grant]], started: PutStarted, deadline: float
    ) -> dict[int, int]:
        """Writes reservation and data, then the commit; allocation id → checksum of what is committed everywhere."""
        checksums = {grant.allocation_id: await self._sum(item.pieces) for item, grant in granted}
        failed: set[int] = set()
        for state in (SlotState.RESERVED, SlotState.COMMITTED):
            pairs = [pair for pair in granted if pair[1].allocation_id not in failed]
            failed |= await self._write_all(pairs, state, checksums, started, deadline)
        return {number: checksum for number, checksum in checksums.items() if number not in failed}

    async def _write_all(
        self,
        granted: Sequence[tuple[PutObject, Grant]],
        state: SlotState,
        checksums: dict[int, int],
        started: PutStarted,
        deadline: float,
    ) -> set[int]:
        """Writes one phase to all nodes at once; allocation ids of what failed somewhere."""
        per_node: dict[str, list[tuple[int, tuple[Pieces, int]]]] = {}
        for item, grant in granted:
            for placement in grant.placements:
                slot = Slot(
                    state, grant.allocation_id, placement.offset, item.size_bytes, checksums[grant.allocation_id]
                )
                writes: list[tuple[Pieces, int]] = [([memoryview(pack_slot(slot))], placement.slot * SLOT_BYTES)]
                if state is SlotState.RESERVED:
                    header = Header(grant.allocation_id, item.size_bytes, item.key, item.parent)
                    writes.append(([memoryview(pack_header(header)), *item.pieces], placement.offset))
                per_node.setdefault(placement.node, []).extend((grant.allocation_id, write) for write in writes)
        failures = await asyncio.gather(
            *(self._write_node(started.segments[node], writes, deadline) for node, writes in per_node.items())
        )
        return set().union(*failures)

    async def _write_node(
        self, segment: SegmentDescriptor, writes: Sequence[tuple[int, tuple[Pieces, int]]], deadline: float
    ) -> set[int]:
        timeout_s = deadline - time.monotonic()
        errors = await self._engine.write(segment, [write for _, write in writes], timeout_s=timeout_s)
        failed = {number for (number, _), error in zip(writes, errors, strict=True) if error is not None}
        if failed:
            _log.warning("cannot write to %s: %s", segment.owner, next(error for error in errors if error))
        return failed

    async def _end(
        self,
        started: PutStarted,
        granted: Sequence[tuple[PutObject, Grant]],
        written: dict[int, int],
        timeout_s: float,
    ) -> dict[int, str]:
        """Commits what was written, gives the rest back; allocation id → error code."""
        if not granted:
            return {}
        numbers = [grant.allocation_id for _, grant in granted]
        commits = [Commit(allocation_id=number, checksum=checksum) for number, checksum in written.items()]
        revoked = [number for number in numbers if number not in written]
        ended = await self._master.call(
            PutEnd(term=started.term, commits=commits, revoked=revoked), PutEnded, timeout_s=timeout_s
        )
        results = dict.fromkeys(revoked, "transfer")
        results.update(zip(written, ended.refusals, strict=True))
        return results

    async def _read(
        self,
        wanted: dict[int, Located],
        attempt: int,
        destinations: Sequence[Pieces],
        got: Got,
        deadline: float,
        results: list[bool],
    ) -> None:
        """Reads each object from its replica number `attempt`, all nodes at once."""
        per_node: dict[str, list[int]] = {}
        for index, found in wanted.items():
            if attempt < len(found.placements):
                per_node.setdefault(found.placements[attempt].node, []).append(index)
        await asyncio.gather(
            *(
                self._read_node(
                    got.segments[node],
                    [(index, wanted[index], wanted[index].placements[attempt]) for index in indexes],
                    destinations,
                    deadline,
                    results,
                )
                for node, indexes in per_node.items()
            )
        )

    async def _read_node(
        self,
        segment: SegmentDescriptor,
        items: Sequence[tuple[int, Located, Placement]],
        destinations: Sequence[Pieces],
        deadline: float,
        results: list[bool],
    ) -> None:
        headers = [bytearray(found.header_bytes) for _, found, _ in items]
        reads = [
            ([memoryview(header), *destinations[index]], placement.offset)
            for header, (index, _, placement) in zip(headers, items, strict=True)
        ]
        errors = await self._engine.read(segment, reads, timeout_s=deadline - time.monotonic())
        for header, error, (index, found, _) in zip(headers, errors, items, strict=True):
            try:
                if error is not None:
                    raise error
                await self._verify(found, header, destinations[index], deadline)
                results[index] = True
            except (MooncakeError, TimeoutError) as reason:
                _log.warning("%s cannot be read from %s: %s", found.key, segment.owner, reason)

    async def _verify(self, found: Located, header: bytearray, pieces: Pieces, deadline: float) -> None:
        """Whether the bytes are those of the object: read under a lease, with its header, and its checksum."""
        named = unpack_header(memoryview(header))
        if named is None or (named.allocation_id, named.key) != (found.allocation_id, found.key):
            raise ChecksumMismatch("the space holds another object by now")
        if self._checksum and await self._sum(pieces) != found.checksum:
            raise ChecksumMismatch("the bytes read are not the bytes put")
        if time.monotonic() > deadline:
            raise TimeoutError("the lease ended while the object was read")

    async def _sum(self, pieces: Pieces) -> int:
        if sum(piece.nbytes for piece in pieces) <= CHECKSUM_ON_LOOP_BYTES:
            return _checksum(pieces)
        return await asyncio.to_thread(_checksum, pieces)


def _checksum(pieces: Pieces) -> int:
    """xxh3-64 over the pieces in order."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.intdigest()
