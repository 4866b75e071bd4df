"""A node: one segment of memory, its directory, and the master's orders about it."""

from __future__ import annotations

import asyncio
import logging

from msgspec.structs import replace

from mooncake_core.errors import ConfigError, StaleAllocation
from mooncake_core.store.layout import (
    ALIGNMENT,
    SLOT_BYTES,
    Slot,
    SlotState,
    align,
    pack_slot,
    unpack_slot,
)
from mooncake_core.store.memory_limit import available_memory_bytes
from mooncake_core.store.prefault import Prefault
from mooncake_core.store.pulling import Pulls
from mooncake_core.store.reporting import Directory
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.units import format_size
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import (
    BlockReport,
    ClearSlots,
    Fence,
    Fenced,
    ReportBlocks,
)
from mooncake_core.wire.messages.tasks import MarkDraining, Pulled, PullObjects
from mooncake_core.wire.server import Call, Handler

_log = logging.getLogger(__name__)


class Node:
    """Owns a segment; knows nothing of policies. Its handlers run on one event loop."""

    def __init__(
        self,
        name: str,
        *,
        capacity_bytes: int,
        object_size_bytes: int,
        incarnation: int,
        engine: TransferEngine,
        prefault: bool = False,
    ) -> None:
        """Takes the memory; `prefault`: all of it from the machine, beside the work.

        Raises:
            ConfigError: the machine has not got so much; shows the arithmetic.
        """
        self._name = name
        self._incarnation = incarnation
        self._engine = engine
        self._capacity_bytes = align(capacity_bytes)
        self._num_slots = max(1, capacity_bytes // max(object_size_bytes, ALIGNMENT))
        self._data_offset = align(self._num_slots * SLOT_BYTES)
        _check_memory(name, self._data_offset + self._capacity_bytes)
        self._memory = SharedMemory(name, self._data_offset + self._capacity_bytes)
        self._view = self._memory.view
        self._prefault = Prefault(name, self._view, available_bytes=available_memory_bytes) if prefault else None
        self._region = engine.register_memory(self._view, self._memory.descriptor)
        self._read = engine.export(self._region, writable=False)
        self._write = engine.export(self._region, writable=True)
        self._term = 0
        self._fence = (0, 0)
        """Term and round of the newest fence."""
        self._withdrawal: asyncio.Future[None] | None = None
        """Of all write exports before the current one."""
        self._directory = Directory(self._view, num_slots=self._num_slots, data_offset=self._data_offset)
        self._pulls = Pulls(engine, self._view, num_slots=self._num_slots, data_offset=self._data_offset)
        self._last_clearing = (0, 0)
        """Term and order of the newest order to clear slots."""
        self._draining = False

    def offer(self) -> SegmentOffer:
        """What the node tells the master when it joins."""
        return SegmentOffer(
            capacity_bytes=self._capacity_bytes,
            data_offset=self._data_offset,
            num_slots=self._num_slots,
            slot_bytes=SLOT_BYTES,
            draining=self._draining,
            read=self._read,
            write=self._write,
        )

    def handlers(self) -> dict[type, Handler]:
        """What a master may ask."""
        return {
            Fence: self.fence,
            ReportBlocks: self.report_blocks,
            ClearSlots: self.clear_slots,
            PullObjects: self.pull_objects,
            MarkDraining: self.mark_draining,
        }

    async def fence(self, message: Fence, call: Call) -> Fenced:
        """Shuts out writers of earlier terms and rounds; when it returns none of them touches the segment any more.

        A fence that comes again waits for the same withdrawals, and gets the same answer.

        Raises:
            StaleAllocation: the node obeys a later master, or handled a later fence meanwhile.
        """
        self._check_term(message.term)
        self._term = message.term
        asked = (message.term, message.round)
        if asked > self._fence:
            self._fence = asked
            old, self._write = self._write, self._engine.export(self._region, writable=True)
            self._withdrawal = asyncio.ensure_future(self._withdraw(old, after=self._withdrawal))
        await self._pulls.stop()
        if self._withdrawal is not None:
            await asyncio.shield(self._withdrawal)  # goes on when the asker gives up
        if asked != self._fence:
            raise StaleAllocation(f"{self._name} was fenced again: {asked} is not the newest of its fences")
        return Fenced(incarnation=self._incarnation, write=self._write)

    async def report_blocks(self, message: ReportBlocks, call: Call) -> BlockReport:
        """The next part of the directory. Reservations of writers that were shut out are dropped."""
        self._check_term(message.term)
        part = self._directory.part(message.cursor)
        for number in part.broken:
            _log.info("slot %d is not that of a whole object: dropped", number)
            self._erase(number)
        return BlockReport(
            incarnation=self._incarnation,
            objects=part.objects,
            next_cursor=part.next_slot if part.next_slot < self._num_slots else -1,
        )

    async def clear_slots(self, message: ClearSlots, call: Call) -> Done:
        """Forgets objects that the master dropped, or marks them as removed."""
        self._check_term(message.term)
        self._last_clearing = max(self._last_clearing, (message.term, message.order))
        await self._pulls.stop(clearing.slot for clearing in message.slots if not clearing.only_mark)
        for clearing in message.slots:
            slot = self._slot(clearing.slot)
            if slot is None or slot.allocation_id != clearing.allocation_id:
                continue
            if clearing.only_mark:
                self._set(clearing.slot, pack_slot(replace(slot, state=SlotState.REMOVED)))
            else:
                self._erase(clearing.slot)
        return Done()

    async def pull_objects(self, message: PullObjects, call: Call) -> Pulled:
        """Copies objects from another node, unless a fence or a clearing has overtaken the order to do so."""
        term = message.term
        if (term, message.round) != self._fence or (term, message.order) <= self._last_clearing:
            refusals = [StaleAllocation.code] * len(message.pulls)
        else:
            refusals = await self._pulls.pull(message.source, message.pulls)
        return Pulled(incarnation=self._incarnation, refusals=refusals)

    async def mark_draining(self, message: MarkDraining, call: Call) -> Done:
        """Remembers, for the next master, whether it is drained."""
        self._check_term(message.term)
        self._draining = message.draining
        return Done()

    def close(self) -> None:
        """Gives the memory back. Idempotent."""
        if self._memory.descriptor >= 0:
            if self._prefault is not None:
                self._prefault.stop()
            self._engine.unregister_memory(self._region)
            self._region.memory.release()
            self._memory.close()

    def _check_term(self, term: int) -> None:
        if term < self._term:
            raise StaleAllocation(f"{self._name} obeys the master of term {self._term}, not that of term {term}")

    def _slot(self, number: int) -> Slot | None:
        return unpack_slot(self._view[number * SLOT_BYTES : (number + 1) * SLOT_BYTES])

    def _set(self, number: int, content: bytes) -> None:
        self._view[number * SLOT_BYTES : (number + 1) * SLOT_BYTES] = content

    def _erase(self, number: int) -> None:
        self._set(number, bytes(SLOT_BYTES))

    async def _withdraw(self, export: SegmentDescriptor, *, after: asyncio.Future[None] | None) -> None:
        if after is not None:
            await after
        await asyncio.to_thread(self._engine.withdraw, export)


def _check_memory(name: str, num_bytes: int) -> None:
    """Mapping alone always succeeds; the trouble would come when the pool fills."""
    available = available_memory_bytes()
    if num_bytes > available:
        raise ConfigError(
            f"{name}: expected {format_size(num_bytes)} of memory for capacity and directory, "
            f"there is {format_size(available)} on this machine, or in its cgroup: lower its capacity"
        )


__all__ = ["Node", "available_memory_bytes"]
