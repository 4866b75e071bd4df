"""The master's side of the pool: who may write where, what can be read, what must go. Pure.

A put is two-phase: space is granted, then committed, and only committed objects can be read. A get takes a lease: what is
under lease is not evicted, and its space is not used again before the lease has ended. Nor is space that a writer may still
write to: see docs/decisions/0006.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import (
    InvalidRequest,
    MooncakeError,
    NoSpace,
    ObjectExists,
    ObjectLeased,
    ObjectNotFound,
    StaleAllocation,
)
from mooncake_core.store.events import Answer, Asked, BlocksRemoved, BlocksStored, Command, Event, Tick
from mooncake_core.store.eviction import Eviction
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.layout import extent_bytes, header_bytes
from mooncake_core.store.node_space import Extent, NodeSpace
from mooncake_core.store.objects import Counters, PoolObject
from mooncake_core.store.placement import in_order_of_choice, victims
from mooncake_core.store.roster import Roster
from mooncake_core.store.tier_events import TierAnswered
from mooncake_core.store.tiering import Tiering
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.inspection import CacheReport
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
from mooncake_core.wire.messages.tiering import Prefetch, Prefetching

MARGIN_S: Final = 1.0
"""Added to a reader's lease and a writer's deadline before their space is touched: clocks run at different speed, and a
transfer that began in time may end a little late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """The pool's part of the configuration."""

    read_lease_s: float = 5.0
    writer_deadline_s: float = 30.0
    high_watermark: float = 0.95
    low_watermark: float = 0.85
    promote_timeout_s: float = 2.0


class Pool:
    """Index of all objects and planner of all space."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        term: int,
        next_id: Callable[[], int],
        eviction: Callable[[], Eviction],
    ) -> None:
        """`next_id` gives numbers that no master of this cluster gave before; `eviction` makes a policy per node."""
        self._settings = settings
        self._term = term
        self._next_id = next_id
        self._nodes: dict[str, NodeSpace] = {}
        self._index = ObjectIndex(self._nodes)
        self._roster = Roster(self._nodes, self._index, old_lease_s=settings.read_lease_s + MARGIN_S, eviction=eviction)
        self._writer_deadlines: list[tuple[float, int]] = []
        self._counters = Counters()
        self._tiering = Tiering(
            self._nodes,
            self._index,
            promote_timeout_s=settings.promote_timeout_s,
            lease_s=settings.read_lease_s + MARGIN_S,
            next_id=next_id,
            make_room=self._make_room,
            counters=self._counters,
        )

    def handle(self, event: Event, now: float) -> list[Command]:
        """Takes notice of an event; says what is to be done."""
        match event:
            case Asked(token, message):
                is_held = isinstance(message, Get) and self._tiering.hold(token, message.keys, now)
                commands: list[Command] = [] if is_held else [Answer(token, self._answer(message, now))]
            case Tick():
                commands = self._roster.retry(now)
            case TierAnswered():
                commands = []
                self._tiering.handle(event, now)
            case _:
                commands = self._roster.handle(event, now)
                self._tiering.follow_roster()
        self._expire(now)
        if self._tiering.is_needed:
            commands += self._tiering.requests(now)
            commands += [
                Answer(token, self._get(keys, now, held_s)) for token, keys, held_s in self._tiering.answerable(now)
            ]
        commands += self._roster.requests(now)
        return [*self._changes(), *commands]

    def next_deadline(self) -> float | None:
        """When time itself is the next event."""
        writer = self._writer_deadlines[0][0] if self._writer_deadlines else None
        nodes = min(self._roster.deadlines(), default=None)
        tiers = min(self._tiering.deadlines(), default=None) if self._tiering.is_needed else None
        return min((deadline for deadline in (writer, nodes, tiers) if deadline is not None), default=None)

    @property
    def has_tiers(self) -> bool:
        """Whether a node has tiers below its DRAM."""
        return self._tiering.is_needed

    def usage(self, name: str) -> tuple[int, int, int, str]:
        """(capacity, used bytes, objects, state) of a node."""
        node = self._nodes.get(name)
        if node is None:
            return 0, 0, 0, "unknown"
        return node.offer.capacity_bytes, node.used_bytes, len(node.taken), node.state.value

    def report(self, now: float, *, prefix: str = "", limit: int = 0) -> CacheReport:
        """The pool in numbers, and some of its objects. Prompt token counts are left to the caller."""
        counters = self._counters
        found = (entry for entry in self._index.all_readable() if entry.key.startswith(prefix))
        entries = [entry for entry, _ in zip(found, range(limit), strict=False)] if limit else []
        return CacheReport(
            num_objects=self._index.num_readable,
            num_writing=self._index.num_writing,
            capacity_bytes=sum(node.offer.capacity_bytes for node in self._nodes.values()),
            used_bytes=sum(node.used_bytes for node in self._nodes.values()),
            quarantined_bytes=sum(node.quarantined_bytes for node in self._nodes.values()),
            puts=counters.puts,
            skipped_puts=counters.skipped_puts,
            refused_puts=counters.refused_puts,
            hits=counters.hits,
            misses=counters.misses,
            evicted=counters.evicted,
            demoted=counters.demoted,
            hits_by_tier=counters.hits_by_tier(),
            hit_bytes_by_tier=counters.hit_bytes_by_tier(),
            tiers=self._tiering.fills(),
            prompt_tokens=0,
            cached_tokens=0,
            entries=[entry.describe(now) for entry in entries],
        )

    def check(self) -> list[str]:
        """The integrity check: what does not add up. Empty when every byte and slot is accounted for exactly once."""
        return self._index.check(self._tiering.arriving())

    def _answer(
        self, message: PutStart | PutEnd | Get | Exists | Remove | RemoveAll | Prefetch, now: float
    ) -> Message | MooncakeError:
        match message:
            case PutStart():
                return self._put_start(message, now)
            case PutEnd():
                return self._put_end(message, now)
            case Get(keys=keys):
                return self._get(keys, now)
            case Exists(keys=keys):
                return ExistsReply(present=[self._index.readable(key) is not None for key in keys])
            case Remove(keys=keys, force=force):
                return Removed(refusals=[self._remove(key, force, now) for key in keys])
            case RemoveAll(force=force):
                return self._remove_all(force, now)
            case Prefetch(keys=keys):
                return Prefetching(num_objects=self._tiering.prefetch(keys, now))

    # Writing

    def _put_start(self, message: PutStart, now: float) -> PutStarted:
        wanting: dict[str, int] = {}
        grants = [self._grant(wanted, message, wanting, now) for wanted in message.objects]
        names = {placement.node for grant in grants for placement in grant.placements}
        for name in names | wanting.keys():
            self._make_room(self._nodes[name], now, wanting.get(name, 0))
        return PutStarted(
            term=self._term,
            writer_deadline_s=self._settings.writer_deadline_s,
            grants=grants,
            segments={name: self._nodes[name].write for name in names},
        )

    def _grant(self, wanted: NewObject, message: PutStart, wanting: dict[str, int], now: float) -> Grant:
        if wanted.key in self._index:
            self._counters.skipped_puts += 1
            return Grant(key=wanted.key, refusal=ObjectExists.code)
        try:
            length = extent_bytes(wanted.key, wanted.parent, wanted.size_bytes)
        except InvalidRequest as error:
            return Grant(key=wanted.key, refusal=error.code)
        allocation_id = self._next_id()
        replicas = self._place(length, allocation_id, message)
        if not replicas:
            self._counters.refused_puts += 1
            self._note_refused(length, message, wanting)
            return Grant(key=wanted.key, refusal=NoSpace.code)
        write_until = now + self._settings.writer_deadline_s + MARGIN_S
        entry = PoolObject(
            wanted.key, wanted.parent, wanted.size_bytes, allocation_id, replicas, used_at=now, write_until=write_until
        )
        self._index.begin(entry)
        heapq.heappush(self._writer_deadlines, (write_until, allocation_id))
        return Grant(key=wanted.key, allocation_id=allocation_id, placements=self._placements(entry))

    def _place(self, length: int, allocation_id: int, message: PutStart) -> dict[str, Extent]:
        """Space on different nodes."""
        replicas: dict[str, Extent] = {}
        for node in in_order_of_choice(self._nodes.values(), message.preferred_node):
            if len(replicas) == message.replicas:
                break
            extent = node.allocate(length, allocation_id)
            if extent is not None:
                replicas[node.name] = extent
        return replicas

    def _note_refused(self, length: int, message: PutStart, wanting: dict[str, int]) -> None:
        """Adds to what nodes want room for: those that would take the object, were they not full."""
        fitting = (
            node
            for node in in_order_of_choice(self._nodes.values(), message.preferred_node)
            if wanting.get(node.name, 0) + length <= node.offer.capacity_bytes
        )
        for node, _ in zip(fitting, range(message.replicas), strict=False):
            wanting[node.name] = wanting.get(node.name, 0) + length

    def _put_end(self, message: PutEnd, now: float) -> PutEnded:
        settled = set(message.settled)
        for allocation_id in message.revoked:
            if (entry := self._index.written_by(allocation_id)) is not None:
                self._take_back(entry, list(entry.replicas), settled, now)
        stale = message.term != self._term
        return PutEnded(
            refusals=[
                StaleAllocation.code if stale else self._commit(commit, settled, now) for commit in message.commits
            ]
        )

    def _commit(self, commit: Commit, settled: set[str], now: float) -> str:
        entry = self._index.written_by(commit.allocation_id)
        if entry is None:
            return StaleAllocation.code
        self._take_back(
            entry, [name for name in entry.replicas if entry.doomed or name not in commit.nodes], settled, now
        )
        if not entry.replicas:
            return StaleAllocation.code
        entry.checksum = commit.checksum
        self._counters.puts += 1
        self._index.publish(entry, now)
        self._tiering.committed(entry, now)
        return ""

    def _take_back(self, entry: PoolObject, names: Sequence[str], settled: set[str], now: float) -> None:
        """Gives up space that was granted; where writes are not settled, only once none can land any more."""
        for name in names:
            not_before = now if name in settled else entry.write_until
            self._nodes[name].give_up_unsettled(self._index.drop_replica(entry, name), not_before, now)

    def _expire(self, now: float) -> None:
        """Drops what was not committed in time. Nobody knows about its writer, so it is shut out."""
        while self._writer_deadlines and self._writer_deadlines[0][0] <= now:
            _, allocation_id = heapq.heappop(self._writer_deadlines)
            entry = self._index.written_by(allocation_id)
            for name in list(entry.replicas) if entry else ():
                assert entry is not None  # it has replicas
                self._nodes[name].give_up_unfenced(self._index.drop_replica(entry, name))

    # Reading

    def _get(self, keys: Sequence[str], now: float, held_s: float = 0.0) -> Got:
        objects = [self._locate(key, now) for key in keys]
        for key in reversed(keys):  # so that the tail of a chain counts as used before its head
            if (entry := self._index.readable(key)) is not None:
                for name in entry.replicas:
                    self._nodes[name].eviction.touched(key)
        names = {placement.node for found in objects if found for placement in found.placements}
        return Got(
            term=self._term,
            lease_s=self._settings.read_lease_s,
            objects=objects,
            segments={name: self._nodes[name].offer.read for name in names},
            held_s=held_s,
        )

    def _locate(self, key: str, now: float) -> Located | None:
        entry = self._index.readable(key)
        if entry is None or not entry.replicas:
            self._counters.misses += 1
            return None
        self._counters.hits += 1
        self._counters.hit_bytes += entry.size_bytes
        if entry.came_from:
            self._counters.came(entry.came_from, entry.size_bytes)
            entry.came_from = ""
        entry.lease_until = max(entry.lease_until, now + self._settings.read_lease_s + MARGIN_S)
        entry.used_at = now
        return Located(
            key=key,
            allocation_id=entry.allocation_id,
            size_bytes=entry.size_bytes,
            header_bytes=header_bytes(entry.key, entry.parent),
            checksum=entry.checksum,
            placements=self._placements(entry),
        )

    def _placements(self, entry: PoolObject) -> list[Placement]:
        return [
            Placement(node=name, incarnation=self._nodes[name].incarnation, slot=extent.slot, offset=extent.offset)
            for name, extent in entry.replicas.items()
        ]

    # Removing

    def _remove(self, key: str, force: bool, now: float) -> str:
        entry = self._index.readable(key)
        if entry is None:
            return ObjectNotFound.code
        if entry.lease_until > now and not force:
            return ObjectLeased.code
        for name in list(entry.replicas):
            self._drop_replica(entry, name, now)
        self._tiering.removed(entry, now)
        return ""

    def _remove_all(self, force: bool, now: float) -> RemovedAll:
        """With force also puts that are under way come to nothing."""
        refusals = [self._remove(entry.key, force, now) for entry in list(self._index.all_readable())]
        for entry in self._index.being_written() if force else ():
            self._index.doom(entry)
        if force:
            self._tiering.all_removed()
        return RemovedAll(removed=refusals.count(""), kept=len(refusals) - refusals.count(""))

    def _drop_replica(self, entry: PoolObject, name: str, now: float) -> None:
        """A replica is gone; its space is used again once no lease covers it."""
        self._nodes[name].give_up(self._index.drop_replica(entry, name), entry.lease_until, now)

    def _make_room(self, node: NodeSpace, now: float, refused_bytes: int) -> None:
        """Evicts from above the high watermark to below the low one; and where a put was just refused, for want of
        bytes, of slots, or of a long enough extent, at least as much as it wanted: the next one finds room."""
        capacity = node.offer.capacity_bytes
        live_bytes = self._live_bytes(node)
        if not refused_bytes and live_bytes <= self._settings.high_watermark * capacity:
            return
        target = min(self._settings.low_watermark * capacity, live_bytes - refused_bytes)
        for entry in victims(node, self._index, now) if live_bytes > target else ():
            if not self._tiering.demote(entry, node.name, now):
                self._drop_replica(entry, node.name, now)
            self._counters.evicted += 1
            if self._live_bytes(node) <= target:
                return

    def _live_bytes(self, node: NodeSpace) -> int:
        """Space of objects that stay in DRAM."""
        return node.live_bytes - self._tiering.leaving_bytes(node.name)

    def _changes(self) -> list[Command]:
        changes = self._index.take_changes()
        removed: list[Command] = [BlocksRemoved(name, keys) for name, keys in changes.removed.items()]
        stored: list[Command] = [BlocksStored(name, keys) for name, keys in changes.stored.items()]
        return [*removed, *stored]
