"""The master's view of one node's segment: what is taken, what waits to be given back, and what is free. Pure.

An extent that is not needed any more goes through: quarantine (a reader's lease may still cover it), clearing (the node
was asked to clear the slot), and only then free.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mooncake_core.store.allocator import Allocator
from mooncake_core.store.eviction import Eviction
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import SlotClearing


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Space of one replica: a slot and a range."""

    slot: int
    offset: int
    length: int
    allocation_id: int


class NodeState(enum.Enum):
    """How far a node has come in joining."""

    FENCING = "fencing"
    REPORTING = "reporting"
    READY = "ready"


class NodeSpace:
    """One node in one incarnation."""

    def __init__(self, name: str, incarnation: int, offer: SegmentOffer, eviction: Eviction) -> None:
        self.name = name
        self.incarnation = incarnation
        self.offer = offer
        self.write: SegmentDescriptor = offer.write
        self.eviction = eviction
        self.state = NodeState.FENCING
        self.cursor = 0
        self.retry_at = 0.0
        self.taken: dict[int, Extent] = {}
        """Slot → extent of objects that are there or being written."""
        self.clearing: dict[int, Extent] = {}
        self._unsent: list[Extent] = []
        self._quarantine: list[tuple[float, Extent]] = []
        self._leaving_bytes = 0
        self._allocator = Allocator(offer.data_offset, 0)
        self._free_slots: list[int] = []

    @property
    def ready(self) -> bool:
        return self.state is NodeState.READY

    @property
    def used_bytes(self) -> int:
        """Space that cannot be given out now."""
        return self._allocator.used_bytes if self.ready else sum(extent.length for extent in self.taken.values())

    @property
    def live_bytes(self) -> int:
        """Space of objects; what is on its way to being free does not count."""
        return self.used_bytes - self.quarantined_bytes

    @property
    def quarantined_bytes(self) -> int:
        """Space on its way to being free."""
        return self._leaving_bytes

    def free_ratio(self) -> float:
        """Free share of the segment."""
        return self._allocator.free_bytes / self.offer.capacity_bytes

    def open(self) -> None:
        """The report is complete: what it did not name is free."""
        extents = self._extents()
        self._allocator = Allocator(
            self.offer.data_offset,
            self.offer.capacity_bytes,
            ((extent.offset, extent.length) for extent in extents),
        )
        slots = {extent.slot for extent in extents}
        self._free_slots = [slot for slot in reversed(range(self.offer.num_slots)) if slot not in slots]
        self.state = NodeState.READY

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
        return fits

    def allocate(self, length: int, allocation_id: int) -> Extent | None:
        """Space for a new replica, or None."""
        if not self.ready or not self._free_slots:
            return None
        offset = self._allocator.allocate(length)
        if offset is None:
            return None
        extent = Extent(self._free_slots.pop(), offset, length, allocation_id)
        self.taken[extent.slot] = extent
        return extent

    def give_up(self, extent: Extent, not_before: float, now: float) -> None:
        """An object is gone; its space may be used again after `not_before`."""
        del self.taken[extent.slot]
        self._leaving_bytes += extent.length
        if not_before > now:
            heapq.heappush(self._quarantine, (not_before, extent))
        else:
            self._clear(extent)

    def due(self, now: float) -> None:
        """Moves what has been quarantined long enough on to clearing."""
        while self._quarantine and self._quarantine[0][0] <= now:
            self._clear(heapq.heappop(self._quarantine)[1])

    def next_deadline(self) -> float | None:
        """When the first quarantine ends."""
        return self._quarantine[0][0] if self._quarantine else None

    def unsent(self) -> list[SlotClearing]:
        """Slots the node was not yet asked to clear; from now on it was."""
        extents, self._unsent = self._unsent, []
        return [SlotClearing(slot=extent.slot, allocation_id=extent.allocation_id) for extent in extents]

    def resend(self) -> None:
        """The node did not confirm in time: it is asked again for all."""
        self._unsent = list(self.clearing.values())

    def cleared(self, slots: Iterable[SlotClearing]) -> None:
        """The node has cleared these: their space is free."""
        for clearing in slots:
            extent = self.clearing.get(clearing.slot)
            if extent is not None and extent.allocation_id == clearing.allocation_id:
                del self.clearing[clearing.slot]
                self._leaving_bytes -= extent.length
                self._allocator.free(extent.offset, extent.length)
                self._free_slots.append(extent.slot)

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
        if self._leaving_bytes != taken - sum(extent.length for extent in self.taken.values()):
            problems.append(f"{self.name}: the count of leaving bytes is wrong")
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
        return [*self.taken.values(), *self.clearing.values(), *(extent for _, extent in self._quarantine)]

    def _clear(self, extent: Extent) -> None:
        self.clearing[extent.slot] = extent
        self._unsent.append(extent)
