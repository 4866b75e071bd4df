"""The master's view of one node's tiers: what the node is to be asked, and what it was asked. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from mooncake_core.store.node_space import Extent
from mooncake_core.store.objects import PoolObject
from mooncake_core.store.tier_events import (
    AskTierReport,
    DemoteObjects,
    ForgetObjects,
    ObjectsLoaded,
    PromoteObjects,
    TierCommand,
)
from mooncake_core.store.tiers.contract import TierKey
from mooncake_core.wire.messages.tiering import Promotion, SlotName, TieredName, TierFill

BATCH_BYTES: Final = 32 << 20
"""Asked for with one message."""
NAMES_PER_MESSAGE: Final = 4096
AGAIN_S: Final = 2.0
COPY_DEADLINE_S: Final = 10.0
"""What waits longer to be copied goes without: puts need its space."""


@dataclass(frozen=True, slots=True)
class Copy:
    """An object that is to be copied from DRAM to the tiers."""

    entry: PoolObject
    extent: Extent
    since: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """An object that is to be copied from the tiers to DRAM, and its space there."""

    entry: PoolObject
    extent: Extent

    def message(self) -> Promotion:
        entry = self.entry
        return Promotion(
            key=entry.key,
            allocation_id=entry.allocation_id,
            size_bytes=entry.size_bytes,
            checksum=entry.checksum,
            slot=self.extent.slot,
            offset=self.extent.offset,
            parent=entry.parent,
        )


class LoadPace:
    """How fast a node brings objects up, from the first request until none is left: they share what the tier can do."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._since = 0.0
        self._under_way = 0
        self._is_whole = True

    def asked(self, now: float) -> None:
        """One request more."""
        if not self._under_way:
            self.num_bytes, self._since, self._is_whole = 0, now, True
        self._under_way += 1

    def answered(self, num_bytes: int, now: float) -> float:
        """One less; how long all have taken together when it was the last, else 0."""
        self._under_way -= 1
        self.num_bytes += num_bytes
        return now - self._since if self._is_whole and not self._under_way else 0.0

    def failed(self) -> None:
        """One less, which says nothing of the pace."""
        self._under_way -= 1
        self._is_whole = False


class TierNode:
    """One node in one incarnation. One report, one demotion and one removal are under way at a time."""

    def __init__(
        self,
        name: str,
        incarnation: int,
        kinds: Sequence[str],
        *,
        write_through: bool,
        stirred: dict[TierNode, None] | None = None,
    ) -> None:
        """`stirred` is common to all: it enters itself there when it may have something to ask."""
        self._stirred: dict[TierNode, None] = {} if stirred is None else stirred
        self._stirred[self] = None
        self.name = name
        self.incarnation = incarnation
        self.kinds = kinds
        self.write_through = write_through
        self.fills: Sequence[TierFill] = ()
        self._cursor: str | None = ""
        self._reporting = False
        self._copies: deque[Copy] = deque()
        self._copying: list[Copy] = []
        self._forget: dict[TierKey, None] = {}
        self._forgetting = False
        self._arrivals: dict[int, Arrival] = {}
        self._unasked: dict[int, None] = {}
        """Of the arrivals those that the node was not asked for, by allocation id."""
        self._again_at: float | None = None
        self._loads = LoadPace()

    def copy(self, copy: Copy) -> None:
        """Its turn comes."""
        self._copies.append(copy)
        self._stirred[self] = None

    def forget(self, name: TierKey) -> None:
        """The tiers are to drop it; asked for until confirmed."""
        self._forget[name] = None
        self._stirred[self] = None

    def bring(self, arrival: Arrival) -> None:
        """Asked for until answered: only then its space can be used for something else."""
        self._arrivals[arrival.entry.allocation_id] = arrival
        self._unasked[arrival.entry.allocation_id] = None
        self._stirred[self] = None

    def arrivals(self) -> list[Arrival]:
        return list(self._arrivals.values())

    def arrived(self, allocation_id: int) -> Arrival | None:
        """The node has answered for it."""
        return self._arrivals.pop(allocation_id, None)

    def loaded(self, num_bytes: int, now: float) -> ObjectsLoaded | None:
        """The node has answered a request to bring up objects; what that says of its pace, when it was the last one."""
        took_s = self._loads.answered(num_bytes, now)
        return ObjectsLoaded(self.name, self._loads.num_bytes, took_s) if took_s else None

    def copied(self) -> list[Copy]:
        """The node has answered, or it will not."""
        self._stirred[self] = None
        copies, self._copying = self._copying, []
        return copies

    def overdue(self, now: float) -> Iterator[Copy]:
        """Takes out what has waited too long."""
        while self._copies and self._copies[0].since + COPY_DEADLINE_S <= now:
            yield self._copies.popleft()

    def reported(self, next_cursor: str | None) -> None:
        self._reporting = False
        self._cursor = next_cursor
        self._stirred[self] = None

    def forgot(self, names: Sequence[TieredName]) -> None:
        self._stirred[self] = None
        self._forgetting = False
        for name in names:
            self._forget.pop(TierKey(name.key, name.allocation_id), None)

    def unanswered(self, asked: TierCommand, now: float) -> None:
        """It is asked again after a while; but for copies, whose space is needed."""
        self._again_at = now + AGAIN_S
        self._stirred[self] = None
        match asked:
            case AskTierReport():
                self._reporting = False
            case ForgetObjects():
                self._forgetting = False
            case PromoteObjects(objects=objects):
                self._loads.failed()
                self._unasked |= {
                    wanted.allocation_id: None for wanted in objects if wanted.allocation_id in self._arrivals
                }
            case DemoteObjects():
                pass

    @property
    def waits(self) -> bool:
        """Whether it will have something to ask when time has passed, though nothing else happens."""
        return bool(self._copies) or self._again_at is not None

    def deadlines(self) -> Iterator[float]:
        """When time itself is the next event."""
        if self._copies:
            yield self._copies[0].since + COPY_DEADLINE_S
        if self._again_at is not None:
            yield self._again_at

    def requests(self, now: float) -> Iterator[TierCommand]:
        """What the node is to be asked now."""
        if self._again_at is not None:
            if now < self._again_at:
                return
            self._again_at = None
        if self._cursor is not None and not self._reporting:
            self._reporting = True
            yield AskTierReport(self.name, self.incarnation, self._cursor)
        if self._forget and not self._forgetting:
            self._forgetting = True
            names = islice(self._forget, NAMES_PER_MESSAGE)
            yield ForgetObjects(self.name, self.incarnation, [TieredName(key=k, allocation_id=a) for k, a in names])
        if not self._copying and (slots := self._next_copies()):
            yield DemoteObjects(self.name, self.incarnation, slots)
        if self._unasked:
            wanted = [self._arrivals[number].message() for number in self._unasked]
            self._unasked.clear()
            for part in _parts(wanted):
                self._loads.asked(now)
                yield PromoteObjects(self.name, self.incarnation, part)

    def _next_copies(self) -> list[SlotName]:
        num_bytes = 0
        while self._copies and num_bytes < BATCH_BYTES:
            copy = self._copies.popleft()
            if copy.extent in (copy.entry.replicas.get(self.name), copy.entry.leaving.get(self.name)):
                self._copying.append(copy)
                num_bytes += copy.extent.length
        return [SlotName(slot=copy.extent.slot, allocation_id=copy.extent.allocation_id) for copy in self._copying]


def _parts(objects: Sequence[Promotion]) -> Iterator[list[Promotion]]:
    part: list[Promotion] = []
    num_bytes = 0
    for wanted in objects:
        part.append(wanted)
        num_bytes += wanted.size_bytes
        if num_bytes >= BATCH_BYTES:
            yield part
            part, num_bytes = [], 0
    if part:
        yield part
