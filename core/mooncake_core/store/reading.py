"""Objects on their way out of the pool: located under a lease, read part by part, believed when the last part agrees."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mooncake_core.errors import (
    ChecksumMismatch,
    InvalidRequest,
    MooncakeError,
    ObjectNotFound,
    OutOfRange,
    TransferError,
)
from mooncake_core.store import checksums
from mooncake_core.store.carrying import Carrier, Ends, Job
from mooncake_core.store.division import SMALLEST_PART_BYTES, Division
from mooncake_core.store.layout import SLOT_BYTES, is_committed, names
from mooncake_core.transfer.batch import Transfer
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.slices import split, total_bytes
from mooncake_core.wire.messages.pool import Got, Located
from mooncake_core.wire.messages.tiering import DRAM

_log = logging.getLogger(__name__)

Pieces = Sequence[memoryview]
Cut = tuple[int, Pieces]
"""Bytes of an object from an offset on, and where they are to go."""
Destination = Callable[[int, int], Pieces | None]
"""Given an object's place in the get and its size: where its bytes are to go, or None where it is not wanted."""


@dataclass(slots=True)
class _Object:
    """One located object, and how far it was read."""

    found: Located
    digest: checksums.Digest | None = None
    """Of the bytes that must agree; None before the first of them."""
    summed_bytes: int = 0
    must_agree: bool = False
    """Some of its bytes came by a path whose bytes are verified."""
    read_bytes: int = 0
    replica: int = 0
    named: bool = False
    """This replica's header, or slot, was seen to be the object's."""


@dataclass(slots=True)
class _NodeRead:
    """What is read from one node with one transfer."""

    node: str
    indexes: list[int] = field(default_factory=list)
    unnamed: list[int] = field(default_factory=list)
    """Those of them of which it was not seen yet that this replica is the object's."""
    headers: list[bytearray] = field(default_factory=list)
    """Of the unnamed ones, in order; or else their slots, one after the other."""
    slots: bytearray = field(default_factory=bytearray)
    ends: Ends = field(default_factory=Ends)

    def begin(self, index: int, item: _Object, *, is_named_elsewhere: bool = False) -> None:
        """Bytes of an object are among what is read."""
        self.indexes.append(index)
        if not (item.named or is_named_elsewhere):
            self.unnamed.append(index)


class Reading:
    """A get under way; made by StoreClient.begin_get. One read at a time."""

    def __init__(
        self, carrier: Carrier, got: Got, deadline: float, *, checksum: checksums.Choice, watch: bool = False
    ) -> None:
        """`watch`: the lease is from an earlier get, so that an object may be gone since, by force: its slot is looked at."""
        self._carrier = carrier
        self._got = got
        self.deadline = deadline
        """time.monotonic() at which the lease, or the caller's patience, ends."""
        self._checksum = checksum
        self._watch = watch
        self.bytes_by_path: dict[str, int] = {}
        """What was moved, by the transport that carried it."""
        self._objects = {index: _Object(found) for index, found in enumerate(got.objects) if found is not None}

    def tier(self, index: int) -> str:
        """Where an object lay when it was asked for: `dram`, or the kind of a tier; it must not be a miss."""
        return self._objects[index].found.tier or DRAM

    def size_bytes(self, index: int) -> int | None:
        """Of an object that can be read, given by its place in the get; None for a miss."""
        item = self._objects.get(index)
        return None if item is None else item.found.size_bytes

    @property
    def good(self) -> list[bool]:
        """Which objects were found and could be read so far."""
        return [index in self._objects for index in range(len(self._got.objects))]

    def drop(self, indexes: Sequence[int]) -> None:
        """These are not wanted any more: they count as misses."""
        for index in indexes:
            self._objects.pop(index, None)

    async def read(self, parts: Mapping[int, Pieces]) -> None:
        """Reads the next bytes of some objects into pieces, given by the object's place in the get. A node that fails is
        made up for by the next replica; an object without one left is a miss from then on. Also a cancelled call returns
        only when nothing uses the pieces any more."""
        cuts = {
            index: [(self._objects[index].read_bytes, pieces)]
            for index, pieces in parts.items()
            if index in self._objects
        }
        await self._read(cuts, self.deadline)
        summed: list[tuple[checksums.Digest, Pieces]] = []
        for index, pieces in parts.items():
            if (item := self._objects.get(index)) is None:
                continue
            length = total_bytes(pieces)
            item.read_bytes += length
            if item.must_agree:
                item.digest = item.digest or checksums.Digest()
                item.summed_bytes += length
                summed.append((item.digest, pieces))
        if summed:
            await self._carrier.feed(summed)

    async def read_ranges(self, cuts: Mapping[int, Sequence[Cut]], *, timeout_s: float) -> dict[int, bool]:
        """Reads parts of objects, in any order; whether all of an object's came, within the lease. They belong to the object,
        but cannot be verified: a checksum is of the whole. For objects that are read like this, `finish` says nothing.

        Raises:
            InvalidRequest: a part lies outside of its object; nothing was read.
        """
        for index, wanted in cuts.items():
            if index in self._objects and not self.fits(index, wanted):
                size = self._objects[index].found.size_bytes
                raise InvalidRequest(f"expected parts within the object's {size} bytes", param="offset")
        if time.monotonic() > self.deadline:  # the objects may be there still: it can be renewed
            return dict.fromkeys(cuts, False)
        until = min(self.deadline, time.monotonic() + timeout_s)
        await self._read({index: wanted for index, wanted in cuts.items() if index in self._objects}, until)
        in_time = time.monotonic() <= self.deadline
        return {index: in_time and index in self._objects for index in cuts}

    def fits(self, index: int, cuts: Sequence[Cut]) -> bool:
        """Whether parts lie within an object that can be read."""
        size = self.size_bytes(index)
        return size is not None and all(start >= 0 and start + total_bytes(pieces) <= size for start, pieces in cuts)

    def renewed(self, got: Got, deadline: float) -> list[bool]:
        """The same objects under a new lease, or a miss where the key names another one by now, or none."""
        self._got, self.deadline = got, deadline
        for index, item in list(self._objects.items()):
            found = got.objects[index]
            if found is None or found.allocation_id != item.found.allocation_id:
                del self._objects[index]
            elif found.placements != item.found.placements:
                item.found, item.replica, item.named = found, 0, False
        return self.good

    async def read_whole(self, destination: Destination) -> list[str]:
        """Reads the objects whole and verifies them; one error code each, empty for success (object_not_found; out_of_range
        where there is no destination; transfer where no replica could be read)."""
        codes = [ObjectNotFound.code] * len(self._got.objects)
        wanted: dict[int, Pieces] = {}
        for index, item in list(self._objects.items()):
            pieces = destination(index, item.found.size_bytes)
            if pieces is None:
                codes[index] = OutOfRange.code
                del self._objects[index]
            else:
                wanted[index] = pieces
        parts = wanted
        while parts:
            await self.read(parts)
            parts = {index: wanted[index] for index in self.damaged()}
        good = self.finish()
        for index in wanted:
            codes[index] = "" if good[index] else TransferError.code
        return codes

    async def read_parts(self, cuts: Sequence[Sequence[Cut]], *, timeout_s: float) -> list[str]:
        """Reads (offset, pieces) of each object, as `read_ranges`; one error code each, empty for success (object_not_found;
        out_of_range where an object is shorter; transfer)."""
        codes = [self._why_not(index, wanted) for index, wanted in enumerate(cuts)]
        fitting = {index: cuts[index] for index, code in enumerate(codes) if not code}
        for index, good in (await self.read_ranges(fitting, timeout_s=timeout_s)).items():
            codes[index] = "" if good else TransferError.code
        return codes

    def damaged(self) -> list[int]:
        """Objects that were read whole and are not what was put, where another replica may be better: they are to be read
        again from their beginning."""
        found = []
        for index, item in self._objects.items():
            if self._is_damaged(item) and item.replica + 1 < len(item.found.placements):
                _log.warning("%s is damaged in %s", item.found.key, item.found.placements[item.replica].node)
                self._objects[index] = _Object(item.found, replica=item.replica + 1)
                found.append(index)
        return found

    def finish(self) -> list[bool]:
        """Whether each object is there whole: its bytes were read within the lease, and are the bytes that were put."""
        for index, item in list(self._objects.items()):
            try:
                self._verify(item)
            except (MooncakeError, TimeoutError) as reason:
                _log.warning("%s cannot be read: %s", item.found.key, reason)
                del self._objects[index]
        return self.good

    def _why_not(self, index: int, cuts: Sequence[Cut]) -> str:
        if index not in self._objects:
            return ObjectNotFound.code
        return "" if self.fits(index, cuts) else OutOfRange.code

    async def _read(self, cuts: Mapping[int, Sequence[Cut]], until: float) -> None:
        left = list(cuts)
        while left:
            reads = self._plan(left, cuts)
            jobs = [Job(self._got.segments[read.node], read.ends) for read in reads.parts]
            patience_s = max(0.0, until - time.monotonic())
            moved, interrupt = await self._carrier.move(
                Kind.READ, jobs, timeout_s=patience_s, divided_bytes=reads.num_bytes
            )
            if interrupt is not None:
                raise interrupt
            failed = [self._note(read, transfer) for read, transfer in zip(reads.parts, moved, strict=True)]
            lost = dict.fromkeys(index for indexes in failed for index in indexes)
            left = [index for index in lost if self._next_replica(index)]

    def _plan(self, indexes: Sequence[int], cuts: Mapping[int, Sequence[Cut]]) -> Division[_NodeRead]:
        num_bytes = sum([total_bytes(pieces) for index in indexes for _, pieces in cuts[index]])
        reads = Division(
            _NodeRead, num_bytes, lambda node: self._carrier.width(Kind.READ, self._got.segments[node], num_bytes)
        )
        for index in indexes:
            item = self._objects[index]
            placement = item.found.placements[item.replica]
            read = reads.part(placement.node)
            read.begin(index, item)
            if not (item.named or self._watch):
                header = bytearray(item.found.header_bytes)
                read.headers.append(header)
                read.ends.add(placement.offset, [memoryview(header)], item.found.header_bytes)
            data = placement.offset + item.found.header_bytes
            for start, pieces in cuts[index]:
                length = total_bytes(pieces)
                if length < SMALLEST_PART_BYTES:
                    read.ends.add(data + start, pieces, length)
                    reads.filled(placement.node, length)
                else:
                    read = self._add_long(reads, index, data + start, pieces)
        if self._watch:  # last: so they are the newest of what is read
            for read in reads.parts:
                self._add_slots(read)
        return reads

    def _add_long(self, reads: Division[_NodeRead], index: int, start: int, pieces: Pieces) -> _NodeRead:
        """Bytes of an object that may go to several parts; the part that takes the last. In those after its first one only a slot
        can name the object: its header is in that."""
        item = self._objects[index]
        node = item.found.placements[item.replica].node
        left = total_bytes(pieces)
        while True:
            read = reads.part(node)
            if read.indexes[-1:] != [index]:
                read.begin(index, item, is_named_elsewhere=not self._watch)
            now = reads.room(node, left)
            first, pieces = (pieces, []) if now == left else split(pieces, now)
            read.ends.add(start, first, now)
            reads.filled(node, now)
            start, left = start + now, left - now
            if not left:
                return read

    def _add_slots(self, read: _NodeRead) -> None:
        """As one piece: objects that were put together mostly have slots side by side."""
        if not read.unnamed:
            return
        read.slots = bytearray(SLOT_BYTES * len(read.unnamed))
        pieces = [memoryview(read.slots)]
        for index in read.unnamed:
            item = self._objects[index]
            read.ends.add(item.found.placements[item.replica].slot * SLOT_BYTES, pieces, SLOT_BYTES)
            pieces = []

    def _note(self, read: _NodeRead, transfer: Transfer) -> list[int]:
        """What one transfer brought from a node; the objects that it could not bring."""
        if transfer.error is not None:
            _log.warning("cannot read from %s: %s", transfer.request.segment.owner, transfer.error)
            return read.indexes
        self.bytes_by_path[transfer.path] = self.bytes_by_path.get(transfer.path, 0) + read.ends.num_bytes
        if checksums.wanted(self._checksum, transfer.path):
            for index in read.indexes:
                self._objects[index].must_agree = True
        return [
            index for number, index in enumerate(read.unnamed) if not self._name(number, self._objects[index], read)
        ]

    def _name(self, number: int, item: _Object, read: _NodeRead) -> bool:
        """Whether the space holds the object still, of which the header or slot is that number in `read`; stale space holds
        another one. A slot says the same as a header, and that it was not removed."""
        found = item.found
        if self._watch:
            item.named = is_committed(read.slots, found.allocation_id, SLOT_BYTES * number)
        else:
            item.named = names(read.headers[number], found.allocation_id, found.key)
        if not item.named:
            _log.warning("%s is not where it was said to be", found.key)
        return item.named

    def _next_replica(self, index: int) -> bool:
        item = self._objects[index]
        item.replica += 1
        item.named = False
        if item.replica < len(item.found.placements):
            return True
        del self._objects[index]
        return False

    def _verify(self, item: _Object) -> None:
        if item.read_bytes != item.found.size_bytes:
            raise ChecksumMismatch(f"{item.read_bytes} of its {item.found.size_bytes} bytes were read")
        if self._is_damaged(item):
            raise ChecksumMismatch("the bytes read are not the bytes put")
        if time.monotonic() > self.deadline:
            raise TimeoutError("the lease ended while it was read")

    def _is_damaged(self, item: _Object) -> bool:
        if item.read_bytes != item.found.size_bytes or not item.must_agree:
            return False
        if item.found.checksum == checksums.NO_CHECKSUM:  # nothing to compare with
            return False
        # An object whose first parts were not summed, because they came by another path, cannot be told to be right.
        return (
            item.digest is None
            or item.summed_bytes != item.read_bytes
            or item.digest.intdigest() != item.found.checksum
        )
