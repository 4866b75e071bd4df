"""Objects on their way into the pool: space is granted, bytes move part by part, then all is committed with one message."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mooncake_core.errors import DeadlineExceeded, InvalidRequest, StaleSegment, TransferError
from mooncake_core.store import checksums
from mooncake_core.store.coverage import Coverage
from mooncake_core.store.layout import SLOT_BYTES, Header, Slot, SlotState, header_bytes, pack_header, pack_slot
from mooncake_core.store.waiting import all_ended
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.slices import total_bytes
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages.pool import Commit, Grant, NewObject, PutEnd, PutEnded, PutStarted

_log = logging.getLogger(__name__)

Pieces = Sequence[memoryview]
Write = tuple[list[memoryview], list[Range]]


@dataclass(slots=True)
class _Object:
    """One granted object, and how far it has come."""

    new: NewObject
    grant: Grant
    digest: checksums.Digest = field(default_factory=checksums.Digest)
    written: Coverage = field(default_factory=Coverage)
    begun: bool = False
    """Its slot and header are written with its first bytes."""
    lost: set[str] = field(default_factory=set)
    """Nodes that could not be written to: the object goes on without them, while there are others."""

    @property
    def nodes(self) -> list[str]:
        """Those that hold all that was written."""
        return [placement.node for placement in self.grant.placements if placement.node not in self.lost]

    @property
    def is_whole(self) -> bool:
        return bool(self.nodes) and self.begun and self.written.reached == self.new.size_bytes

    @property
    def checksum(self) -> int:
        """Of all its bytes, if they came in order: a sum cannot be taken of what is gone by."""
        return self.digest.intdigest() if self.written.in_order else checksums.NO_CHECKSUM


Writes = dict[str, tuple[list[_Object], Write]]
"""Node → whose bytes go there, and what."""


class Putting:
    """A put under way; made by StoreClient.begin_put. One write at a time; `end` must follow, whatever happens."""

    def __init__(
        self,
        master: Client,
        engine: TransferEngine,
        wanted: Sequence[NewObject],
        started: PutStarted,
        deadline: float,
        write_timeout_s: float,
    ) -> None:
        self._master = master
        self._engine = engine
        self._started = started
        self.deadline = deadline
        """time.monotonic() after which nothing is written any more."""
        self._write_timeout_s = write_timeout_s
        self._objects = {
            index: _Object(new, grant)
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
        return [index for index, item in self._objects.items() if item.nodes]

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
        writes: Writes = {}
        sums: list[tuple[checksums.Digest, Pieces]] = []
        for index, offset, pieces in wanted:
            item = self._objects[index]
            self._gather(item, offset, pieces, writes)
            if item.written.in_order:
                sums.append((item.digest, pieces))
        jobs = [self._write_node(node, *job) for node, job in writes.items()]
        if checksums.are_short(sums):
            checksums.feed_now(sums)
        else:
            jobs.append(checksums.feed(sums))
        await all_ended(jobs)

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
        whole = [item for item in whole if item.nodes]
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
        ended = await self._master.call(message, PutEnded, timeout_s=timeout_s)
        codes = dict.fromkeys(message.revoked, TransferError.code)
        codes.update(zip((commit.allocation_id for commit in message.commits), ended.refusals, strict=True))
        for index, item in ending.items():
            self._codes[index] = codes[item.grant.allocation_id]

    def _is_open(self, index: int) -> bool:
        item = self._objects.get(index)
        return item is not None and bool(item.nodes)

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
            objects, (near, far) = writes.setdefault(placement.node, ([], ([], [])))
            objects.append(item)
            if not item.begun:
                slot = Slot(SlotState.RESERVED, item.grant.allocation_id, placement.offset, item.new.size_bytes, 0)
                near.append(memoryview(pack_slot(slot)))
                far.append(Range(placement.slot * SLOT_BYTES, SLOT_BYTES))
                header = Header(item.grant.allocation_id, item.new.size_bytes, item.new.key, item.new.parent)
                near.append(memoryview(pack_header(header)))
                far.append(Range(placement.offset, header_length))
            near.extend(pieces)
            far.append(Range(placement.offset + header_length + offset, length))
        item.begun = True
        item.written.add(offset, offset + length)

    async def _write_slots(self, whole: Sequence[_Object]) -> None:
        """The directory's word that an object is whole: written when its data is."""
        writes: Writes = {}
        for item in whole:
            for placement in item.grant.placements:
                if placement.node in item.lost:
                    continue
                slot = Slot(
                    SlotState.COMMITTED,
                    item.grant.allocation_id,
                    placement.offset,
                    item.new.size_bytes,
                    item.checksum,
                )
                objects, (near, far) = writes.setdefault(placement.node, ([], ([], [])))
                objects.append(item)
                near.append(memoryview(pack_slot(slot)))
                far.append(Range(placement.slot * SLOT_BYTES, SLOT_BYTES))
        await all_ended(self._write_node(node, *job) for node, job in writes.items())

    async def _write_node(self, node: str, objects: list[_Object], write: Write) -> None:
        """One transfer carries everything for a node; if it fails, all its objects have lost that node."""
        error = await self._move(node, write)
        if error is None:
            return
        _log.warning("cannot write to %s: %s", node, error)
        for item in objects:
            item.lost.add(node)

    async def _move(self, node: str, write: Write) -> TransferError | TimeoutError | None:
        patience_s = min(self.deadline - time.monotonic(), self._write_timeout_s)
        if patience_s <= 0:
            return DeadlineExceeded("the writer's deadline has passed")
        segment = self._started.segments[node]
        (transfer,) = await self._engine.transfer(Kind.WRITE, segment, [write], timeout_s=patience_s)
        if transfer.error is None:
            self.bytes_by_path[transfer.path] = self.bytes_by_path.get(transfer.path, 0) + total_bytes(write[0])
        elif not isinstance(transfer.error, StaleSegment):  # a withdrawn segment is touched by nobody
            self._unsettled.add(node)
        return transfer.error
