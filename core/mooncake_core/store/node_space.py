"""The master's view of one node's segment: what is taken, what waits to be given back, and what is free. Pure.

An extent that is not needed any more waits until nobody can touch it: for a time (a reader's lease, a writer's deadline), or
for a fence, where its writer was never heard of again. Then comes clearing (the node was asked to clear the slot), and only
then it is free. While it waits its slot is marked, so that another master knows it for what it is.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterable

from msgspec import Struct

from mooncake_core.store.allocator import Allocator, coalesced
from mooncake_core.store.eviction import Eviction
from mooncake_core.store.eviction_order import EvictionOrder
from mooncake_core.store.node_chores import NodeChores
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import SlotClearing


class Extent(Struct, frozen=True, order=True, gc=False):
    """Space of one replica: a slot and a range. One per replica: the garbage collector need not look at them."""

    slot: int
    offset: int
    length: int
    allocation_id: int
    round: int = 0
    """Newest fence when it was granted: its writer is shut out by every later one."""


class NodeState(enum.Enum):
    """How far a node has come in joining."""

    FENCING = "fencing"
    REPORTING = "reporting"
    READY = "ready"


class NodeSpace:
    """One node in one incarnation."""

    def __init__(
        self,
        name: str,
        incarnation: int,
        offer: SegmentOffer,
        eviction: Eviction,
        chores: NodeChores | None = None,
    ) -> None:
        """`chores` is told what the node has to be asked; it is common to all nodes."""
        self.name = name
        self.incarnation = incarnation
        self.offer = offer
        self.host = offer.read.host_id
        self._chores = NodeChores() if chores is None else chores
        self._chores.joined(self)
        self.write: SegmentDescriptor = offer.write
        self.eviction = EvictionOrder(eviction)
        self.state = NodeState.FENCING
        self.draining = False
        """It takes no new objects."""
        self.round = 0
        """The newest fence the node was asked for."""
        self._fenced_round = -1
        self.cursor = 0
        self.retry_at = 0.0
        self.taken: dict[int, Extent] = {}
        """Slot → extent of objects that are there or being written."""
        self.clearing: dict[int, Extent] = {}
        self._marking: dict[int, Extent] = {}
        """Slots of what waits that the node has not confirmed as marked."""
        self._unsent: list[SlotClearing] = []
        self._unfenced: list[Extent] = []
        """Their writers may still be alive: they wait for a fence."""
        self._quarantine: list[tuple[float, Extent]] = []
        self._clearing_bytes = 0
        """Of all that is on its way to being free."""
        self.leaving_bytes = 0
        """Of what is taken that whose object goes when it has been copied to the node's tiers."""
        self._leaving_slots = 0
        self.hits = self.hit_bytes = 0
        """Of reads that are sent here first."""
        self._allocator = Allocator(offer.data_offset, 0)
        self._free_slots: list[int] = []
        self._adopted: list[Extent] = []
        """Of the part of the report that is being read."""
        self._reported: list[tuple[int, int]] = []
        """(offset, length) of what earlier parts told."""

    @property
    def ready(self) -> bool:
        return self.state is NodeState.READY

    @property
    def fencing(self) -> bool:
        """A fence is under way: until it is answered nobody can be told where to write."""
        return self.round != self._fenced_round

    @property
    def writable(self) -> bool:
        """Puts can go there."""
        return self.ready and not self.fencing

    @property
    def accepts(self) -> bool:
        """New objects can go there."""
        return self.writable and not self.draining

    @property
    def needs_fence(self) -> bool:
        return bool(self._unfenced) and not self.fencing

    @property
    def unconfirmed(self) -> bool:
        """The node was asked to clear or mark slots, and has not answered."""
        return bool(self.clearing or self._marking)

    @property
    def used_bytes(self) -> int:
        """Space that cannot be given out now."""
        return self._allocator.used_bytes if self.ready else sum(extent.length for extent in self.taken.values())

    @property
    def live_bytes(self) -> int:
        """Space of objects that stay; what is on its way to being free, or will be when it is copied, does not count."""
        return self.used_bytes - self.quarantined_bytes - self.leaving_bytes

    @property
    def quarantined_bytes(self) -> int:
        """Space on its way to being free."""
        return self._clearing_bytes

    @property
    def spare_slots(self) -> int:
        """Slots without an object that stays; some of them may not be free yet."""
        return self.offer.num_slots - len(self.taken) + self._leaving_slots

    def free_ratio(self) -> float:
        """Free share of the segment; of one without any room none is."""
        return self._allocator.free_bytes / max(1, self.offer.capacity_bytes)

    def drain(self, draining: bool) -> None:
        """Whether it takes new objects, from now on."""
        self.draining = draining
        if not draining:
            self._chores.note_room(self)

    def begin_fence(self, round_: int) -> None:
        """From now on nobody is told where to write, until the fence of this round is done."""
        self.round = round_
        self._chores.unwritable[self] = None

    def fenced(self, write: SegmentDescriptor) -> None:
        """The fence asked for is done: no writer of before can touch the segment any more."""
        self.write = write
        self._fenced_round = self.round
        self._note_writable()
        unfenced, self._unfenced = self._unfenced, []
        for extent in unfenced:
            self._clear(extent)

    def end_part(self, next_cursor: int) -> None:
        """The report has told all about the slots up to this one; that takes its time here, so that `open` takes little."""
        slots = {extent.slot for extent in self._adopted}
        self._free_slots.extend(slot for slot in range(self.cursor, next_cursor) if slot not in slots)
        self._reported += coalesced((extent.offset, extent.length) for extent in self._adopted)
        self._adopted.clear()
        self.cursor = next_cursor

    def open(self) -> None:
        """The report is complete: what it did not name is free."""
        self._allocator = Allocator(self.offer.data_offset, self.offer.capacity_bytes, self._reported)
        self._reported = []
        self._free_slots.reverse()
        self.state = NodeState.READY
        self._note_writable()
        if self._unsent:  # of what was gone when it was reported
            self._chores.ask(self)

    def adopt(self, extent: Extent) -> bool:
        """Takes an object of the report over; False where it makes no sense."""
        fits = (
            0 <= extent.slot < self.offer.num_slots
            and extent.offset >= self.offer.data_offset
            and extent.offset + extent.length <= self.offer.data_offset + self.offer.capacity_bytes
            and extent.slot not in self.taken
        )
        if fits:
            self.taken[extent.slot] = extent
            self._adopted.append(extent)
        return fits

    def allocate(self, length: int, allocation_id: int) -> Extent | None:
        """Space for a new replica, or None."""
        if not self.accepts or not self._free_slots:
            return None
        offset = self._allocator.allocate(length)
        if offset is None:
            return None
        extent = Extent(self._free_slots.pop(), offset, length, allocation_id, self.round)
        self.taken[extent.slot] = extent
        return extent

    def begin_leaving(self, extent: Extent) -> None:
        """Its object goes as soon as it has been copied."""
        self.leaving_bytes += extent.length
        self._leaving_slots += 1

    def end_leaving(self, extent: Extent) -> None:
        """It goes now, or it stays."""
        self.leaving_bytes -= extent.length
        self._leaving_slots -= 1

    def give_up(self, extent: Extent, not_before: float, now: float) -> None:
        """Its object is gone; the space may be used again after `not_before`."""
        self._leave(extent)
        if not_before > now:
            if not self._quarantine or not_before < self._quarantine[0][0]:
                self._chores.wait(self, not_before)
            heapq.heappush(self._quarantine, (not_before, extent))
            self._mark(extent)
        else:
            self._clear(extent)

    def give_up_unsettled(self, extent: Extent, not_before: float, now: float) -> None:
        """Its object is gone, and a write may still land before `not_before`, unless the writer was shut out since."""
        self.give_up(extent, now if extent.round < self._fenced_round else not_before, now)

    def give_up_unfenced(self, extent: Extent) -> None:
        """Its object is gone, and its writer may write for ever, unless it was shut out since: the space waits for a fence."""
        self._leave(extent)
        if extent.round < self._fenced_round:
            self._clear(extent)
        else:
            self._unfenced.append(extent)
            self._chores.ask(self)
            self._mark(extent)

    def due(self, now: float) -> None:
        """Moves what has been quarantined long enough on to clearing."""
        while self._quarantine and self._quarantine[0][0] <= now:
            self._clear(heapq.heappop(self._quarantine)[1])
        if self._quarantine:
            self._chores.wait(self, self._quarantine[0][0])

    def next_deadline(self) -> float | None:
        """When the first quarantine ends."""
        return self._quarantine[0][0] if self._quarantine else None

    def unsent(self) -> list[SlotClearing]:
        """Slots the node was not yet asked to clear or mark; from now on it was."""
        unsent, self._unsent = self._unsent, []
        return unsent

    def resend(self) -> None:
        """The node did not confirm in time: it is asked again for all."""
        self._unsent = [_clearing(extent) for extent in self.clearing.values()]
        self._unsent += [_clearing(extent, only_mark=True) for extent in self._marking.values()]
        self._chores.ask(self)

    def cleared(self, slots: Iterable[SlotClearing]) -> None:
        """The node has marked these, or cleared them: then their space is free."""
        for clearing in slots:
            asked = self._marking if clearing.only_mark else self.clearing
            extent = asked.get(clearing.slot)
            if extent is None or extent.allocation_id != clearing.allocation_id:
                continue
            del asked[clearing.slot]
            if not clearing.only_mark:
                self._clearing_bytes -= extent.length
                self._allocator.free(extent.offset, extent.length)
                self._free_slots.append(extent.slot)
        if not self.unconfirmed:
            self._chores.unconfirmed.pop(self, None)
        self._chores.note_room(self)

    def check(self, owner_of: Callable[[int], bool]) -> list[str]:
        """What does not add up."""
        if not self.ready:
            return []
        extents = self._extents()
        problems = [
            f"{self.name}: {extent} belongs to nobody"
            for extent in self.taken.values()
            if not owner_of(extent.allocation_id)
        ]
        taken = sum(extent.length for extent in extents)
        if self._clearing_bytes != taken - sum(extent.length for extent in self.taken.values()):
            problems.append(f"{self.name}: the count of bytes on their way to being free is wrong")
        if taken + self._allocator.free_bytes != self.offer.capacity_bytes:
            problems.append(f"{self.name}: {taken} taken + {self._allocator.free_bytes} free is not the capacity")
        if len(extents) + len(self._free_slots) != self.offer.num_slots:
            problems.append(f"{self.name}: {len(extents)} slots taken + {len(self._free_slots)} free is not all")
        try:
            Allocator(self.offer.data_offset, self.offer.capacity_bytes, ((x.offset, x.length) for x in extents))
        except ValueError as error:
            problems.append(f"{self.name}: {error}")
        return problems

    def _extents(self) -> list[Extent]:
        """All that is not free."""
        waiting = [extent for _, extent in self._quarantine]
        return [*self.taken.values(), *self.clearing.values(), *self._unfenced, *waiting]

    def _leave(self, extent: Extent) -> None:
        del self.taken[extent.slot]
        self._clearing_bytes += extent.length

    def _note_writable(self) -> None:
        if self.writable:
            self._chores.unwritable.pop(self, None)
            self._chores.note_room(self)

    def _mark(self, extent: Extent) -> None:
        self._marking[extent.slot] = extent
        self._send(_clearing(extent, only_mark=True))

    def _clear(self, extent: Extent) -> None:
        self._marking.pop(extent.slot, None)
        self.clearing[extent.slot] = extent
        self._send(_clearing(extent))

    def _send(self, clearing: SlotClearing) -> None:
        self._unsent.append(clearing)
        self._chores.unconfirmed[self] = None
        self._chores.ask(self)


def _clearing(extent: Extent, *, only_mark: bool = False) -> SlotClearing:
    return SlotClearing(slot=extent.slot, allocation_id=extent.allocation_id, only_mark=only_mark)
