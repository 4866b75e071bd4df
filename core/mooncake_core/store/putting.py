"""Objects on their way into the pool: space is granted, bytes move part by part, then all is committed with one message."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mooncake_core.errors import DeadlineExceeded, InvalidRequest, StaleSegment, TransferError
from mooncake_core.store import checksums
from mooncake_core.store.carrying import Carrier, Ends, Job
from mooncake_core.store.coverage import Coverage
from mooncake_core.store.division import Division
from mooncake_core.store.layout import SLOT_BYTES, Header, Slot, SlotState, header_bytes, pack_header, pack_slot
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.slices import total_bytes
from mooncake_core.wire.messages.pool import Commit, Grant, NewObject, Placement, PutEnd, PutEnded, PutStarted

_log = logging.getLogger(__name__)

Pieces = Sequence[memoryview]


@dataclass(slots=True)
class _Object:
    """One granted object, and how far it has come."""

    new: NewObject
    grant: Grant
    digest: checksums.Digest | None
    """None: it gets no checksum."""
    written: Coverage = field(default_factory=Coverage)
    begun: bool = False
    """Its slot and header are written with its first bytes."""
    lost: tuple[str, ...] = ()
    """Nodes that could not be written to: the object goes on without them, while there are others."""
    sealed: tuple[str, ...] = ()
    """Nodes whose directory says already that it is whole."""

    def placement(self, node: str) -> Placement:
        """Where it is to lie on one of its nodes."""
        placements = self.grant.placements
        return placements[0] if len(placements) == 1 else next(each for each in placements if each.node == node)

    @property
    def nodes(self) -> list[str]:
        """Those that hold all that was written."""
        return [placement.node for placement in self.grant.placements if placement.node not in self.lost]

    @property
    def is_lost(self) -> bool:
        """No node holds it any more."""
        return bool(self.lost) and not self.nodes

    @property
    def is_whole(self) -> bool:
        return not self.is_lost and self.begun and self.written.reached == self.new.size_bytes

    @property
    def checksum(self) -> int:
        """Of all its bytes, if they came in order: a sum cannot be taken of what is gone by."""
        if self.digest is None or not self.written.in_order:
            return checksums.NO_CHECKSUM
        return self.digest.intdigest()


@dataclass(slots=True)
class _NodeWrite:
    """What is written to one node with one transfer."""

    node: str
    objects: list[_Object] = field(default_factory=list)
    """Whose bytes these are."""
    ends: Ends = field(default_factory=Ends)


Writes = Division[_NodeWrite]


class Putting:
    """A put under way; made by StoreClient.begin_put. One write at a time; `end` must follow, whatever happens."""

    def __init__(
        self,
        carrier: Carrier,
        wanted: Sequence[NewObject],
        started: PutStarted,
        deadline: float,
        write_timeout_s: float,
        *,
        summed: bool = True,
    ) -> None:
        """`summed`: the objects get checksums."""
        self._carrier = carrier
        self._started = started
        self.deadline = deadline
        """time.monotonic() after which nothing is written any more."""
        self._write_timeout_s = write_timeout_s
        self._objects = {
            index: _Object(new, grant, checksums.Digest() if summed else None)
            for index, (new, grant) in enumerate(zip(wanted, started.grants, strict=True))
            if grant.placements
        }
        self.bytes_by_path: dict[str, int] = {}
        """What was moved, by the transport that carried it."""
        self._unsettled: set[str] = set()
        """Nodes at which a write may land after it was given up."""
        self._codes = [grant.refusal or TransferError.code for grant in started.grants]

    @property
    def codes(self) -> list[str]:
        """How each object's put has ended: an error code, or empty for success. `object_exists` means that it is, or soon
        will be, there."""
        return list(self._codes)

    @property
    def retry_after_s(self) -> float | None:
        """Where there was no space: after how many seconds there may be some; None when none is on its way to being free."""
        return self._started.retry_after_s

    @property
    def granted(self) -> Sequence[int]:
        """Which of the objects have space, and have not failed; the others need not be written."""
        return [index for index, item in self._objects.items() if not item.is_lost]

    async def write(self, parts: Mapping[int, Pieces]) -> None:
        """Moves the next bytes of some objects, given by their place in the put; those without space are skipped.

        What fails shows in `end`. Also a cancelled call returns only when nothing uses the pieces any more.

        Raises:
            InvalidRequest: an object has not so many bytes; nothing was written.
        """
        objects = self._objects
        await self.write_at(
            (index, objects[index].written.reached, pieces) for index, pieces in parts.items() if index in objects
        )

    async def write_at(self, parts: Iterable[tuple[int, int, Pieces]]) -> None:
        """As `write`, with (object, offset, pieces): bytes of an object in any order. One that is not written from beginning to
        end, each part where the one before ended, gets no checksum: nobody can verify it."""
        wanted = [(index, offset, pieces) for index, offset, pieces in parts if self._is_open(index)]
        for index, offset, pieces in wanted:
            self._check_range(index, offset, total_bytes(pieces))
        writes = Division(_NodeWrite)
        sums: list[tuple[checksums.Digest, Pieces]] = []
        for index, offset, pieces in wanted:
            item = self._objects[index]
            self._gather(item, offset, pieces, writes)
            if item.digest is not None and item.written.in_order:
                sums.append((item.digest, pieces))
        await self._write_nodes(writes.parts, beside=sums)

    async def write_whole(self, parts: Mapping[int, Pieces]) -> None:
        """As `write`, of objects from their first byte to their last. Where a path writes in order, the directory's word that
        they are whole goes with them: one round trip less."""
        items = [(self._objects[index], pieces) for index, pieces in parts.items() if self._is_open(index)]
        await self._carrier.feed([(item.digest, pieces) for item, pieces in items if item.digest is not None])
        segments = self._started.segments
        num_bytes = sum([item.new.size_bytes for item, _ in items]) if len(items) > 1 else 0
        writes = Division(
            _NodeWrite, num_bytes, lambda node: self._carrier.width(Kind.WRITE, segments[node], num_bytes)
        )
        for item, pieces in items:
            self._gather_whole(item, pieces, writes)
        ordered: list[_NodeWrite] = []
        others: list[_NodeWrite] = []
        for write in writes.parts:
            if not self._carrier.writes_in_order(segments[write.node]):
                others.append(write)
                continue
            ordered.append(write)
            _add_slots(write)
            for item in write.objects:
                item.sealed += (write.node,)
        await self._write_nodes(ordered, in_order=True, divided_bytes=num_bytes)
        await self._write_nodes(others, divided_bytes=num_bytes)

    async def end(self, *, timeout_s: float, commit: bool = True) -> list[str]:
        """Commits the objects that are written whole, gives the space of the others back; one error code each, empty for
        success. `object_exists` means that it is, or soon will be, there."""
        await self.end_some(list(self._objects), timeout_s=timeout_s, commit=commit)
        return self.codes

    async def end_some(self, indexes: Sequence[int], *, timeout_s: float, commit: bool = True) -> None:
        """As `end`, of some of the objects; the others can still be written. `codes` says how they ended."""
        ending = {index: self._objects.pop(index) for index in indexes if index in self._objects}
        if not ending:
            return
        whole = [item for item in ending.values() if commit and item.is_whole]
        await self._write_slots(whole)
        whole = [item for item in whole if not item.is_lost]
        kept = {item.grant.allocation_id for item in whole}
        numbers = [item.grant.allocation_id for item in ending.values()]
        message = PutEnd(
            term=self._started.term,
            commits=[
                Commit(allocation_id=item.grant.allocation_id, checksum=item.checksum, nodes=item.nodes)
                for item in whole
            ],
            revoked=[number for number in numbers if number not in kept],
            settled=[node for node in self._started.segments if node not in self._unsettled],
        )
        ended, interrupt = await self._carrier.call_surely(message, PutEnded, timeout_s=timeout_s)
        codes = dict.fromkeys(message.revoked, TransferError.code)
        codes.update(zip((commit.allocation_id for commit in message.commits), ended.refusals, strict=True))
        for index, item in ending.items():
            self._codes[index] = codes[item.grant.allocation_id]
        if interrupt is not None:
            raise interrupt

    def _is_open(self, index: int) -> bool:
        item = self._objects.get(index)
        return item is not None and not item.is_lost

    def _check_range(self, index: int, offset: int, length: int) -> None:
        """What lies behind the object is somebody else's."""
        size = self._objects[index].new.size_bytes
        if offset < 0 or offset + length > size:
            raise InvalidRequest(f"expected bytes within the object's {size}, got {length} at {offset}", param="offset")

    def _gather(self, item: _Object, offset: int, pieces: Pieces, writes: Writes) -> None:
        """Adds bytes of an object to what is written to each of its nodes; the first ones with slot and header."""
        length = total_bytes(pieces)
        header_length = header_bytes(item.new.key, item.new.parent)
        for placement in item.grant.placements:
            if placement.node in item.lost:
                continue
            write = writes.part(placement.node)
            write.objects.append(item)
            ends = write.ends
            if not item.begun:
                reserved = Slot(SlotState.RESERVED, item.grant.allocation_id, placement.offset, item.new.size_bytes, 0)
                ends.add(placement.slot * SLOT_BYTES, [memoryview(pack_slot(reserved))], SLOT_BYTES)
                ends.add(placement.offset, [_header(item)], header_length)
            ends.add(placement.offset + header_length + offset, pieces, length)
        item.begun = True
        item.written.add(offset, offset + length)

    def _gather_whole(self, item: _Object, pieces: Pieces, writes: Writes) -> None:
        """Adds an object to what is written to each of its nodes. No slot: who dies midway leaves nothing in the directory."""
        header = _header(item)
        length = header.nbytes + item.new.size_bytes
        item.begun = True
        item.written.add(0, item.new.size_bytes)
        for placement in item.grant.placements:
            write = writes.part(placement.node)
            write.objects.append(item)
            write.ends.add(placement.offset, [header, *pieces], length)
            writes.filled(placement.node, length)

    async def _write_slots(self, whole: Sequence[_Object]) -> None:
        """The directory's word that an object is whole: written when its data is."""
        writes = Division(_NodeWrite)
        for item in whole:
            for placement in item.grant.placements:
                if placement.node not in item.sealed and placement.node not in item.lost:
                    writes.part(placement.node).objects.append(item)
        for write in writes.parts:
            _add_slots(write)
        await self._write_nodes(writes.parts)

    async def _write_nodes(
        self,
        writes: Sequence[_NodeWrite],
        *,
        beside: checksums.Fed = (),
        in_order: bool = False,
        divided_bytes: int = 0,
    ) -> None:
        """If a transfer fails, the objects that it was to carry have lost that node."""
        if not writes:
            await self._carrier.feed(beside)
            return
        patience_s = min(self.deadline - time.monotonic(), self._write_timeout_s)
        if patience_s <= 0:
            await self._carrier.feed(beside)
            for write in writes:
                _lose(write, DeadlineExceeded("the writer's deadline has passed"))
            return
        jobs = [Job(self._started.segments[write.node], write.ends) for write in writes]
        settled = {write.node for write in writes} - self._unsettled
        self._unsettled |= settled  # an interrupt may keep it from being known
        moved, interrupt = await self._carrier.move(
            Kind.WRITE, jobs, timeout_s=patience_s, in_order=in_order, beside=beside, divided_bytes=divided_bytes
        )
        for write, transfer in zip(writes, moved, strict=True):
            error = transfer.error
            if error is None:
                num_bytes = write.ends.num_bytes
                self.bytes_by_path[transfer.path] = self.bytes_by_path.get(transfer.path, 0) + num_bytes
                continue
            _lose(write, error)
            if not isinstance(error, StaleSegment):  # a withdrawn segment is touched by nobody
                settled.discard(write.node)
        self._unsettled -= settled
        if interrupt is not None:
            raise interrupt


def _lose(write: _NodeWrite, error: Exception) -> None:
    _log.warning("cannot write to %s: %s", write.node, error)
    for item in write.objects:
        item.lost += (write.node,)


def _add_slots(write: _NodeWrite) -> None:
    """What the directory of the node is to say of whole objects. As one piece: their slots lie side by side, mostly."""
    slots = bytearray()
    for item in write.objects:
        placement = item.placement(write.node)
        slots += pack_slot(
            Slot(SlotState.COMMITTED, item.grant.allocation_id, placement.offset, item.new.size_bytes, item.checksum)
        )
        write.ends.add(placement.slot * SLOT_BYTES, (), SLOT_BYTES)
    write.ends.near.append(memoryview(slots))


def _header(item: _Object) -> memoryview:
    header = Header(item.grant.allocation_id, item.new.size_bytes, item.new.key, item.new.parent)
    return memoryview(pack_header(header))
