"""Objects on their way into the pool: space is granted, bytes move part by part, then all is committed with one message."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mooncake_core.errors import DeadlineExceeded, StaleSegment, TransferError
from mooncake_core.store import checksums
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
    written_bytes: int = 0
    lost: set[str] = field(default_factory=set)
    """Nodes that could not be written to: the object goes on without them, while there are others."""

    @property
    def nodes(self) -> list[str]:
        """Those that hold all that was written."""
        return [placement.node for placement in self.grant.placements if placement.node not in self.lost]


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

    @property
    def granted(self) -> Sequence[int]:
        """Which of the objects have space, and have not failed; the others need not be written."""
        return [index for index, item in self._objects.items() if item.nodes]

    async def write(self, parts: Mapping[int, Pieces]) -> None:
        """Moves the next bytes of some objects, given by their place in the put; those without space are skipped.

        What fails shows in `end`. Also a cancelled call returns only when nothing uses the pieces any more.
        """
        writes: dict[str, tuple[list[int], Write]] = {}
        sums: list[tuple[checksums.Digest, Pieces]] = []
        for index in self.granted:
            if index in parts:
                self._gather(index, parts[index], writes)
                sums.append((self._objects[index].digest, parts[index]))
        jobs = [self._write_node(node, *job) for node, job in writes.items()]
        if checksums.are_short(sums):
            checksums.feed_now(sums)
        else:
            jobs.append(checksums.feed(sums))
        await all_ended(jobs)

    async def end(self, *, timeout_s: float, commit: bool = True) -> list[str]:
        """Commits the objects that are written whole, gives the space of the others back; one error code each, empty for
        success. `object_exists` means that it is, or soon will be, there."""
        if not self._objects:
            return [grant.refusal for grant in self._started.grants]
        if commit:
            await self._write_slots()
        whole = [item for item in self._objects.values() if commit and self._is_whole(item)]
        kept = {item.grant.allocation_id for item in whole}
        numbers = [item.grant.allocation_id for item in self._objects.values()]
        message = PutEnd(
            term=self._started.term,
            commits=[
                Commit(allocation_id=item.grant.allocation_id, checksum=item.digest.intdigest(), nodes=item.nodes)
                for item in whole
            ],
            revoked=[number for number in numbers if number not in kept],
            settled=[node for node in self._started.segments if node not in self._unsettled],
        )
        ended = await self._master.call(message, PutEnded, timeout_s=timeout_s)
        codes = dict.fromkeys(message.revoked, "transfer")
        codes.update(zip((commit.allocation_id for commit in message.commits), ended.refusals, strict=True))
        return [grant.refusal or codes[grant.allocation_id] for grant in self._started.grants]

    def _gather(self, index: int, pieces: Pieces, writes: dict[str, tuple[list[int], Write]]) -> None:
        """Adds an object's next bytes to what is written to each of its nodes; the first ones with slot and header."""
        item = self._objects[index]
        length = total_bytes(pieces)
        header_length = header_bytes(item.new.key, item.new.parent)
        for placement in item.grant.placements:
            if placement.node in item.lost:
                continue
            indexes, (near, far) = writes.setdefault(placement.node, ([], ([], [])))
            indexes.append(index)
            if item.written_bytes == 0:
                slot = Slot(SlotState.RESERVED, item.grant.allocation_id, placement.offset, item.new.size_bytes, 0)
                near.append(memoryview(pack_slot(slot)))
                far.append(Range(placement.slot * SLOT_BYTES, SLOT_BYTES))
                header = Header(item.grant.allocation_id, item.new.size_bytes, item.new.key, item.new.parent)
                near.append(memoryview(pack_header(header)))
                far.append(Range(placement.offset, header_length))
            near.extend(pieces)
            far.append(Range(placement.offset + header_length + item.written_bytes, length))
        item.written_bytes += length

    async def _write_slots(self) -> None:
        """The directory's word that an object is whole: written when its data is."""
        writes: dict[str, tuple[list[int], Write]] = {}
        for index, item in self._objects.items():
            if not self._is_whole(item):
                continue
            for placement in item.grant.placements:
                if placement.node in item.lost:
                    continue
                slot = Slot(
                    SlotState.COMMITTED,
                    item.grant.allocation_id,
                    placement.offset,
                    item.new.size_bytes,
                    item.digest.intdigest(),
                )
                indexes, (near, far) = writes.setdefault(placement.node, ([], ([], [])))
                indexes.append(index)
                near.append(memoryview(pack_slot(slot)))
                far.append(Range(placement.slot * SLOT_BYTES, SLOT_BYTES))
        await all_ended(self._write_node(node, *job) for node, job in writes.items())

    async def _write_node(self, node: str, indexes: list[int], write: Write) -> None:
        """One transfer carries everything for a node; if it fails, all its objects have lost that node."""
        error = await self._move(node, write)
        if error is None:
            return
        _log.warning("cannot write to %s: %s", node, error)
        for index in indexes:
            self._objects[index].lost.add(node)

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

    def _is_whole(self, item: _Object) -> bool:
        return bool(item.nodes) and item.written_bytes == item.new.size_bytes
