"""The master's side of the pool: who may write where, what can be read, what must go. Pure.

A put is two-phase: space is granted, then committed, and only committed objects can be read. A get takes a lease: what is
under lease is not evicted, and its space is not used again before the lease has ended. Nor is space that a writer may still
write to: see docs/decisions/0006.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mooncake_core.errors import (
    InvalidRequest,
    MooncakeError,
    NoSpace,
    ObjectBusy,
    ObjectExists,
    ObjectLeased,
    ObjectNotFound,
    QuotaExceeded,
    StaleAllocation,
)
from mooncake_core.store.catalogue import Catalogue
from mooncake_core.store.events import (
    Answer,
    Asked,
    BlocksRemoved,
    BlocksStored,
    Command,
    Event,
    NodeMarked,
    ObjectsPulled,
    Question,
    Tick,
)
from mooncake_core.store.evicting import Evicting
from mooncake_core.store.eviction import Eviction
from mooncake_core.store.hot_prefixes import HotPrefixes, head_of
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.layout import extent_bytes, header_bytes
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import Counters, PoolObject
from mooncake_core.store.operations import Operations
from mooncake_core.store.pins import HARD, soft_until
from mooncake_core.store.placement import Placing, Strategy, free_ratio_first
from mooncake_core.store.removals import Removals
from mooncake_core.store.replicas import Replicas
from mooncake_core.store.reports import node_usages
from mooncake_core.store.roster import Roster
from mooncake_core.store.scans import Scan, selector
from mooncake_core.store.sweeps import Sweeps
from mooncake_core.store.tenants import Account, Tenants, prefix_of, qualified
from mooncake_core.store.tier_events import TierAnswered
from mooncake_core.store.tiering import Tiering
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.inspection import CacheReport
from mooncake_core.wire.messages.objects import RemoveMatching
from mooncake_core.wire.messages.pool import (
    Commit,
    Exists,
    ExistsReply,
    Get,
    Got,
    Grant,
    Located,
    NewObject,
    PutEnd,
    PutEnded,
    PutStart,
    PutStarted,
    Remove,
    RemoveAll,
    Removed,
)
from mooncake_core.wire.messages.tasks import DrainStatus, OperatorQuestion
from mooncake_core.wire.messages.tiering import Prefetch, Prefetching

MARGIN_S: Final = 1.0
"""Added to a reader's lease and a writer's deadline before their space is touched: clocks run at different speed, and a
transfer that began in time may end a little late."""
ROUND_TRIP_S: Final = 0.05
"""What a put that was refused for want of space may wait for a node's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """The pool's part of the configuration."""

    read_lease_s: float = 5.0
    writer_deadline_s: float = 30.0
    high_watermark: float = 0.95
    low_watermark: float = 0.85
    promote_timeout_s: float = 2.0
    quotas: Mapping[str, int | None] = field(default_factory=dict)
    """Tenant → bytes it may hold, None for any number; empty: anybody may be a tenant."""


@dataclass(slots=True)
class _Batch:
    """What is common to the objects of one put."""

    message: PutStart
    account: Account
    placing: Placing
    soft_pin_until: float | None
    """None: not said."""


class Pool:
    """Index of all objects and planner of all space."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        term: int,
        next_id: Callable[[], int],
        eviction: Callable[[], Eviction],
        placement: Strategy = free_ratio_first,
    ) -> None:
        """`next_id` gives numbers that no master of this cluster gave before; `eviction` makes a policy per node."""
        self._settings = settings
        self._term = term
        self._next_id = next_id
        self._placement = placement
        self._nodes: dict[str, NodeSpace] = {}
        self._index = ObjectIndex(self._nodes)
        self._hot = HotPrefixes()
        self._tenants = Tenants(settings.quotas)
        self._removals = Removals()
        self._roster = Roster(
            self._nodes,
            self._index,
            self._tenants,
            self._removals,
            old_lease_s=settings.read_lease_s + MARGIN_S,
            eviction=eviction,
            outdate=self._outdate,
        )
        self._catalogue = Catalogue(self._index, self._nodes, self._tenants, next_id)
        self._sweeps = Sweeps(self._remove_entry)
        self._writer_deadlines: list[tuple[float, int]] = []
        self._counters = Counters()
        self._evicting = Evicting(
            self._nodes,
            self._index,
            self._counters,
            self._evict,
            high_watermark=settings.high_watermark,
            low_watermark=settings.low_watermark,
        )
        self._tiering = Tiering(
            self._nodes,
            self._index,
            self._tenants,
            self._removals,
            promote_timeout_s=settings.promote_timeout_s,
            lease_s=settings.read_lease_s + MARGIN_S,
            make_room=self._evicting.make_room,
            outdate=self._outdate,
            counters=self._counters,
        )
        self._operations = Operations(
            self._nodes,
            self._index,
            next_id=next_id,
            drop_replica=self._drop_replica,
            evict=self._evict,
            high_watermark=settings.high_watermark,
        )

    def handle(self, event: Event, now: float) -> list[Command]:
        """Takes notice of an event; says what is to be done."""
        match event:
            case Asked(token, message):
                commands: list[Command] = list(self._asked(token, message, now))
            case Tick():
                commands = [*self._sweeps.go_on(now), *self._roster.retry(now)]
                self._evicting.go_on(now)
            case ObjectsPulled() | NodeMarked():
                commands = []
            case TierAnswered():
                commands = []
                self._tiering.handle(event, now)
            case _:
                commands = self._roster.handle(event, now)
                self._tiering.follow_roster()
        self._expire(now)
        commands += self._operations.after(event, now)
        if self._tiering.is_needed:
            commands += self._tiering.requests(now)
            commands += [
                Answer(token, self._get(question, now, held_s))
                for token, question, held_s in self._tiering.answerable(now)
            ]
        # What nodes are to be asked comes before the answers: whoever drives this lets some answers wait for it.
        return [*self._changes(), *self._evicting.notices(), *self._roster.requests(now), *commands]

    def next_deadline(self) -> float | None:
        """When time itself is the next event."""
        if not self._sweeps.idle:
            return 0.0
        writer = self._writer_deadlines[0][0] if self._writer_deadlines else None
        nodes = min(self._roster.deadlines(), default=None)
        tiers = min(self._tiering.deadlines(), default=None) if self._tiering.is_needed else None
        deadlines = (writer, nodes, tiers, self._evicting.next_deadline(), self._operations.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def longest_lease_s(self) -> float:
        """How long a reader may hold one that was taken just now."""
        return self._settings.read_lease_s + MARGIN_S

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

    def drain_of(self, name: str) -> DrainStatus | None:
        """How far a node's draining is; None where it does not drain."""
        return self._operations.drain_of(name)

    def report(self, now: float, *, prefix: str = "", limit: int = 0, num_hottest: int = 0) -> CacheReport:
        """The pool in numbers, and some of its objects. Prompt token counts are left to the caller."""
        counters = self._counters
        nodes = node_usages(self._nodes.values())
        found = (entry for entry in self._index.all_readable() if entry.key.startswith(prefix))
        entries = [entry for entry, _ in zip(found, range(limit), strict=False)] if limit else []
        return CacheReport(
            nodes=nodes,
            hottest=self._hot.hottest(num_hottest),
            num_objects=self._index.num_readable,
            num_writing=self._index.num_writing,
            capacity_bytes=sum(node.capacity_bytes for node in nodes),
            used_bytes=sum(node.used_bytes for node in nodes),
            quarantined_bytes=sum(node.quarantined_bytes for node in nodes),
            puts=counters.puts,
            put_bytes=counters.put_bytes,
            skipped_puts=counters.skipped_puts,
            refused_puts=counters.refused_puts,
            hits=counters.hits,
            hit_bytes=counters.hit_bytes,
            misses=counters.misses,
            evicted=counters.evicted,
            evicted_bytes=counters.evicted_bytes,
            eviction_rounds=counters.eviction_rounds,
            stalled_rounds=counters.stalled_rounds,
            stalled_nodes=self._evicting.stalled_nodes(),
            prompt_tokens=0,
            cached_tokens=0,
            entries=[entry.describe(now) for entry in entries],
            tenants=self._catalogue.tenants(),
            refused_by_quota=counters.refused_by_quota,
            demoted=counters.demoted,
            hits_by_tier=counters.hits_by_tier(),
            hit_bytes_by_tier=counters.hit_bytes_by_tier(),
            tiers=self._tiering.fills(),
        )

    def check(self) -> list[str]:
        """The integrity check: what does not add up. Empty when every byte and slot is accounted for exactly once."""
        return self._index.check(self._tiering.arriving())

    def _asked(self, token: int, message: Question, now: float) -> Sequence[Command]:
        """The answer; or none yet, for what is done in slices, and for a get of objects that have to be brought from a tier."""
        try:
            if isinstance(message, RemoveAll | RemoveMatching):
                self._begin_sweep(token, message)
                return self._sweeps.go_on(now)
            if isinstance(message, Get) and message.lease and self._tiering.is_needed:
                keys = self._keys(message.tenant, message.keys)
                if self._tiering.hold(token, message, keys, now):
                    return []
            return [Answer(token, self._answer(message, now))]
        except MooncakeError as error:
            return [Answer(token, error)]

    def _answer(self, message: Question, now: float) -> Message:
        match message:
            case PutStart():
                return self._put_start(message, now)
            case PutEnd():
                return self._put_end(message, now)
            case Get():
                return self._get(message, now)
            case Exists(keys=keys, tenant=tenant):
                return ExistsReply(present=self._index.are_readable(self._keys(tenant, keys)))
            case Prefetch(keys=keys, tenant=tenant):
                return Prefetching(num_objects=self._tiering.prefetch(self._keys(tenant, keys), now))
            case Remove(keys=keys, force=force, tenant=tenant):
                return Removed(refusals=[self._remove(key, force, now) for key in self._keys(tenant, keys)])
            case RemoveAll() | RemoveMatching():
                raise AssertionError("these are answered by a sweep")
            case _ if isinstance(message, OperatorQuestion):
                return self._operations.answer(message, now)
            case _:
                return self._catalogue.answer(message, now)

    def _keys(self, tenant: str, keys: Sequence[str]) -> Sequence[str]:
        """A tenant's keys as they stand in the index.

        Raises:
            TenantUnknown: there is no such tenant.
        """
        self._tenants.account(tenant)
        return qualified(tenant, keys)

    # Writing

    def _put_start(self, message: PutStart, now: float) -> PutStarted:
        batch = self._batch(message, now)
        keys = qualified(message.tenant, [wanted.key for wanted in message.objects])
        parents = qualified(message.tenant, [wanted.parent for wanted in message.objects])
        grants = [
            self._grant(key, parent, wanted, batch, now)
            for key, parent, wanted in zip(keys, parents, message.objects, strict=True)
        ]
        names = {placement.node for grant in grants for placement in grant.placements}
        wanting = batch.placing.wanting
        for name in names | wanting.keys():
            self._evicting.make_room(self._nodes[name], now, wanting.get(name, 0))
        refused = any(grant.refusal == NoSpace.code for grant in grants)
        retry_after_s = self._retry_after_s(now) if refused else None
        return PutStarted(
            term=self._term,
            writer_deadline_s=self._settings.writer_deadline_s,
            grants=grants,
            segments={name: self._nodes[name].write for name in names},
            retry_after_s=retry_after_s,
        )

    def _batch(self, message: PutStart, now: float) -> _Batch:
        """What is wrong with a put as a whole is said before anything is granted.

        Raises:
            TenantUnknown: there is no such tenant.
            InvalidRequest: no put can be like this.
        """
        if message.replicas < 1:
            raise InvalidRequest(f"expected at least 1 replica, got {message.replicas}", param="replicas")
        preferred = [name for name in (message.preferred_node, *message.preferred_nodes) if name]
        soft = None if message.soft_pin_s is None else soft_until(message.soft_pin_s, now)
        placing = Placing(self._nodes, self._placement, preferred)
        return _Batch(message, self._tenants.account(message.tenant), placing, soft)

    def _grant(self, key: str, parent: str, wanted: NewObject, batch: _Batch, now: float) -> Grant:
        old = self._index.get(key)
        if old is not None and (refusal := self._refusal(old, upsert=batch.message.upsert)):
            self._counters.skipped_puts += 1
            return Grant(key=key, refusal=refusal)
        try:
            length = extent_bytes(key, parent, wanted.size_bytes)
        except InvalidRequest as error:
            return Grant(key=key, refusal=error.code)
        if not self._is_within_quota(length, old, batch):
            self._counters.refused_by_quota += 1
            return Grant(key=key, refusal=QuotaExceeded.code)
        allocation_id = self._next_id()
        group = _group_of(wanted, batch.message, old)
        replicas = self._place(length, allocation_id, group, batch)
        if not replicas:
            self._counters.refused_puts += 1
            batch.placing.note_refused(length, batch.message.replicas)
            return Grant(key=key, refusal=NoSpace.code)
        if parent and (before := self._index.get(parent)) is not None:
            parent = before.key  # the same string: a chain's keys are kept once
        entry = PoolObject(key, parent, wanted.size_bytes, allocation_id, replicas, batch.account)
        entry.group = group
        entry.pin_until = _pin_until(batch, old)
        self._begin(entry, now)
        return Grant(key=key, allocation_id=allocation_id, placements=self._catalogue.placements(entry))

    def _begin(self, entry: PoolObject, now: float) -> None:
        """Its writer's time runs from now on."""
        entry.used_at = now
        entry.write_until = now + self._settings.writer_deadline_s + MARGIN_S
        self._index.begin(entry)
        heapq.heappush(self._writer_deadlines, (entry.write_until, entry.allocation_id))

    def _refusal(self, old: PoolObject, *, upsert: bool) -> str:
        """Why a key that is there, or being written, cannot be put: each has one writer at a time."""
        if not upsert:
            return ObjectExists.code
        return "" if old.readable and not self._index.being_replaced(old.key) else ObjectBusy.code

    def _is_within_quota(self, length: int, old: PoolObject | None, batch: _Batch) -> bool:
        """What an upsert replaces does not count: it goes when the new object is there."""
        if batch.account.quota_bytes is None:
            return True
        copies = min(batch.message.replicas, len(self._nodes))
        return batch.account.has_room(length * copies - (old.extent_bytes if old is not None else 0))

    def _place(self, length: int, allocation_id: int, group: str, batch: _Batch) -> Replicas:
        """Space on different nodes."""
        same_node = batch.message.same_node
        near = [name for entry in self._index.group(group).values() for name in entry.replicas] if same_node else ()
        replicas = batch.placing.place(length, allocation_id, batch.message.replicas, near)
        if same_node:
            batch.placing.prefer(replicas)
        return replicas

    def _retry_after_s(self, now: float) -> float | None:
        """When some space may be free that is on its way to it."""
        waits = [
            ROUND_TRIP_S for node in self._nodes.values() if node.clearing or node.leaving_bytes or not node.writable
        ]
        deadlines = (node.next_deadline() for node in self._nodes.values())
        waits += [max(ROUND_TRIP_S, deadline - now) for deadline in deadlines if deadline is not None]
        return min(waits, default=None)

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
        entry.write_until = 0.0
        if (old := self._index.replaced_by(entry)) is not None:
            self._drop(old, entry.allocation_id, now)
        self._counters.puts += 1
        self._counters.put_bytes += entry.size_bytes
        self._index.publish(entry, now)
        self._removals.committed(entry.key, entry.allocation_id, is_one_away=self._roster.is_one_away)
        self._tiering.committed(entry, now)
        return ""

    def _take_back(self, entry: PoolObject, names: Sequence[str], settled: set[str], now: float) -> None:
        """Gives up space that was granted; where writes are not settled, only once none can land any more."""
        for name in names:
            not_before = now if name in settled else entry.write_until
            self._nodes[name].give_up_unsettled(self._index.drop_replica(entry, name), not_before, now)

    def _expire(self, now: float) -> None:
        """Drops what was not committed in time: nobody knows about its writer, so it is shut out. Ends soft pins."""
        self._index.end_pins(now)
        while self._writer_deadlines and self._writer_deadlines[0][0] <= now:
            _, allocation_id = heapq.heappop(self._writer_deadlines)
            entry = self._index.written_by(allocation_id)
            for name in list(entry.replicas) if entry else ():
                assert entry is not None  # it has replicas
                self._nodes[name].give_up_unfenced(self._index.drop_replica(entry, name))

    # Reading

    def _get(self, message: Get, now: float, held_s: float = 0.0) -> Got:
        found = [self._in_dram(key) for key in self._keys(message.tenant, message.keys)]
        objects = [None if entry is None else self._locate(entry) for entry in found]
        if message.lease:
            self._use(found, now)
            self._note_read(found, self._tenants.account(message.tenant))
        names = {placement.node for located in objects if located for placement in located.placements}
        return Got(
            term=self._term,
            lease_s=self._settings.read_lease_s if message.lease else 0.0,
            objects=objects,
            segments={name: self._nodes[name].offer.read for name in names},
            held_s=held_s,
        )

    def _in_dram(self, key: str) -> PoolObject | None:
        entry = self._index.readable(key)
        return entry if entry is not None and entry.replicas else None

    def _use(self, found: Sequence[PoolObject | None], now: float) -> None:
        """These objects are going to be read: a lease on each; and they, with their groups, count as used."""
        lease_until = now + self._settings.read_lease_s + MARGIN_S
        groups: dict[str, None] = {}
        for entry in reversed(found):  # so that the tail of a chain counts as used before its head
            if entry is None:
                self._counters.misses += 1
                continue
            self._counters.hits += 1
            if entry.came_from:
                self._counters.came(entry.came_from, entry.size_bytes)
                entry.came_from = ""
            entry.lease_until = max(entry.lease_until, lease_until)
            entry.used_at = now
            if entry.group:
                groups[entry.group] = None
            else:
                self._touch(entry)
        for group in groups:
            for entry in self._index.group(group).values():
                self._touch(entry)

    def _touch(self, entry: PoolObject) -> None:
        if not entry.pin_until:  # else it is not ranked
            for name in entry.replicas:
                self._nodes[name].eviction.touched(entry.key)

    def _locate(self, entry: PoolObject) -> Located:
        return Located(
            key=entry.key,
            allocation_id=entry.allocation_id,
            size_bytes=entry.size_bytes,
            header_bytes=header_bytes(entry.key, entry.parent),
            checksum=entry.checksum,
            placements=self._catalogue.placements(entry),
            tier=entry.came_from,
        )

    def _note_read(self, found: Sequence[PoolObject | None], account: Account) -> None:
        """One question is about one prefix, that of the first object it finds."""
        entries = [entry for entry in found if entry is not None]
        account.hits += len(entries)
        account.misses += len(found) - len(entries)
        if entries:
            size_bytes = sum(entry.size_bytes for entry in entries)
            self._counters.hit_bytes += size_bytes
            account.hit_bytes += size_bytes
            self._hot.read(head_of(entries[0].key, self._index.get), num_objects=len(entries), size_bytes=size_bytes)

    # Removing

    def _remove(self, key: str, force: bool, now: float) -> str:
        entry = self._index.readable(key)
        if entry is not None:
            return self._remove_entry(entry, force, now)
        if self._roster.is_one_away:
            self._removals.removed(key, self._next_id())  # it may be what the node has that is away
        return ObjectNotFound.code

    def _remove_entry(self, entry: PoolObject, force: bool, now: float) -> str:
        if entry.is_nowhere:  # it went since it was found
            return ObjectNotFound.code
        if (entry.lease_until > now or entry.copies_under_way) and not force:
            return ObjectLeased.code
        self._drop(entry, self._next_id(), now)
        return ""

    def _begin_sweep(self, token: int, message: RemoveAll | RemoveMatching) -> None:
        """Of all objects with force also puts that are under way come to nothing."""
        if message.tenant or isinstance(message, RemoveMatching):
            self._tenants.account(message.tenant)
        if isinstance(message, RemoveMatching):
            if not message.pattern:
                raise InvalidRequest("expected a pattern; to remove all objects, say so", param="pattern")
            selects = selector(message.tenant, pattern=message.pattern)
        else:
            selects = selector(message.tenant) if message.tenant else _any_key
            for entry in self._index.being_written() if message.force else ():
                if selects(entry.key):
                    self._index.doom(entry)
            if message.force:
                self._tiering.all_removed(message.tenant, self._next_id())
        self._sweeps.begin(token, Scan(list(self._index.all_readable()), selects), force=message.force)

    def _outdate(self, key: str, allocation_id: int, now: float) -> None:
        """An object of a key is known: what is older is not what is meant by it any more."""
        old = self._index.readable(key)
        if old is not None and old.allocation_id < allocation_id:
            self._drop(old, allocation_id, now)

    def _drop(self, entry: PoolObject, before: int, now: float) -> None:
        """An object is gone from everywhere, as is all that was put under its key with a smaller id."""
        for name in list(entry.replicas):
            self._drop_replica(entry, name, now)
        self._tiering.removed(entry, before, now)

    def _drop_replica(self, entry: PoolObject, name: str, now: float) -> None:
        """A replica is gone; its space is used again once no lease covers it."""
        self._nodes[name].give_up(self._index.drop_replica(entry, name), entry.lease_until, now)

    def _evict(self, entry: PoolObject, node: NodeSpace, now: float) -> None:
        """From this node; a group goes as a whole, from all nodes. Where a node has tiers, it is copied there first."""
        for gone in self._index.goes_with(entry):
            for name in list(gone.replicas) if entry.group else [node.name]:
                self._counters.evicted_bytes += gone.replicas[name].length
                if not self._tiering.demote(gone, name, now):
                    self._drop_replica(gone, name, now)
            self._counters.evicted += 1

    def _changes(self) -> list[Command]:
        changes = self._index.take_changes()
        removed: list[Command] = [BlocksRemoved(name, keys) for name, keys in changes.removed.items()]
        stored: list[Command] = [BlocksStored(name, list(keys)) for name, keys in changes.stored.items()]
        return [*removed, *stored]


def _any_key(key: str) -> bool:
    return True


def _group_of(wanted: NewObject, message: PutStart, old: PoolObject | None) -> str:
    """As it is named among all tenants' groups. What an upsert does not say is as it was."""
    if wanted.group:
        return prefix_of(message.tenant) + wanted.group
    return "" if old is None else old.group


def _pin_until(batch: _Batch, old: PoolObject | None) -> float:
    """The pin of an object that is put (see pins.py). What an upsert does not say is as it was."""
    was = 0.0 if old is None else old.pin_until
    hard = batch.message.hard_pin
    if hard or (hard is None and was == HARD):
        return HARD
    if batch.soft_pin_until is not None:
        return batch.soft_pin_until
    return 0.0 if was == HARD else was
