"""The master's side of the pool: who may write where, what can be read, what must go. Pure.

A put is two-phase: space is granted, then committed, and only committed objects can be read (grants.py). A get takes a lease
(lookups.py): what is under lease is not evicted, and its space is not used again before the lease has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mooncake_core.errors import (
    InvalidRequest,
    MooncakeError,
    ObjectLeased,
    ObjectNotFound,
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
from mooncake_core.store.grants import Grants
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.lookups import Lookups
from mooncake_core.store.node_chores import NodeChores
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import Counters, PoolObject
from mooncake_core.store.operations import Operations
from mooncake_core.store.placement import FreeRatioFirst, Strategy
from mooncake_core.store.pool_settings import MARGIN_S, PoolSettings
from mooncake_core.store.removals import Removals
from mooncake_core.store.reports import node_usages
from mooncake_core.store.roster import Roster
from mooncake_core.store.scans import Scan, selector
from mooncake_core.store.sweeps import Sweeps
from mooncake_core.store.tenants import Tenants, qualified
from mooncake_core.store.tier_events import TierAnswered
from mooncake_core.store.tiering import Tiering
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.inspection import CacheReport
from mooncake_core.wire.messages.objects import RemoveMatching, RemoveReplicas
from mooncake_core.wire.messages.pool import (
    Exists,
    ExistsReply,
    Get,
    PutEnd,
    PutStart,
    Remove,
    RemoveAll,
    Removed,
)
from mooncake_core.wire.messages.tasks import DrainStatus, OperatorQuestion
from mooncake_core.wire.messages.tiering import Prefetch, Prefetching


class Pool:
    """Index of all objects and planner of all space."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        term: int,
        next_id: Callable[[], int],
        eviction: Callable[[], Eviction],
        placement: Strategy = FreeRatioFirst,
    ) -> None:
        """`next_id` gives numbers that no master of this cluster gave before; `eviction` makes a policy per node."""
        self._settings = settings
        self._next_id = next_id
        self._nodes: dict[str, NodeSpace] = {}
        self._index = ObjectIndex(self._nodes)
        self._tenants = Tenants(settings.quotas)
        self._removals = Removals()
        chores = NodeChores()
        self._roster = Roster(
            self._nodes,
            self._index,
            self._tenants,
            self._removals,
            old_lease_s=settings.read_lease_s + MARGIN_S,
            eviction=eviction,
            outdate=self._outdate,
            chores=chores,
        )
        self._catalogue = Catalogue(self._index, self._nodes, self._tenants, next_id)
        self._sweeps = Sweeps(self._remove_entry)
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
        self._grants = Grants(
            self._nodes,
            self._index,
            self._tenants,
            self._counters,
            self._catalogue,
            self._evicting,
            term=term,
            next_id=next_id,
            order=placement(self._nodes, chores),
            writer_deadline_s=settings.writer_deadline_s,
            drop=self._drop,
            committed=self._committed,
        )
        self._lookups = Lookups(
            self._nodes,
            self._index,
            self._tenants,
            self._counters,
            self._catalogue,
            term=term,
            read_lease_s=settings.read_lease_s,
        )

    def handle(self, event: Event, now: float) -> list[Command]:
        """Takes notice of an event; says what is to be done."""
        commands: list[Command]
        match event:
            case Asked(token, message):
                commands = self._asked(token, message, now)
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
        self._index.end_pins(now)
        self._grants.expire(now)
        commands += self._operations.after(event, now)
        if self._tiering.is_needed:
            commands += self._tiering.requests(now)
            commands += [
                Answer(token, self._lookups.get(question, now, held_s))
                for token, question, held_s in self._tiering.answerable(now)
            ]
        # What nodes are to be asked comes before the answers: whoever drives this lets some answers wait for it.
        return [*self._changes(), *self._evicting.notices(), *self._roster.requests(now), *commands]

    def next_deadline(self) -> float | None:
        """When time itself is the next event."""
        if not self._sweeps.idle:
            return 0.0
        deadlines = [
            deadline
            for deadline in (
                self._grants.next_deadline(),
                self._evicting.next_deadline(),
                self._operations.next_deadline(),
                *self._roster.deadlines(),
            )
            if deadline is not None
        ]
        if self._tiering.is_needed:
            deadlines += self._tiering.deadlines()
        return min(deadlines) if deadlines else None

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
            hottest=self._lookups.hottest(num_hottest),
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
        return self._index.check(self._tenants, self._tiering.arriving())

    def _asked(self, token: int, message: Question, now: float) -> list[Command]:
        """The answer; or none yet, for what is done in slices, and for a get of objects that have to be brought from a tier."""
        try:
            if isinstance(message, RemoveAll | RemoveMatching):
                self._begin_sweep(token, message)
                return [*self._sweeps.go_on(now)]
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
                return self._grants.start(message, now)
            case PutEnd():
                return self._grants.end(message, now)
            case Get():
                return self._lookups.get(message, now)
            case Exists(keys=keys, tenant=tenant):
                return ExistsReply(present=self._index.are_readable(self._keys(tenant, keys)))
            case Prefetch(keys=keys, tenant=tenant):
                return Prefetching(num_objects=self._tiering.prefetch(self._keys(tenant, keys), now))
            case Remove(keys=keys, force=force, tenant=tenant):
                return Removed(refusals=[self._remove(key, force, now) for key in self._keys(tenant, keys)])
            case RemoveReplicas(keys=keys, node=node, tenant=tenant):
                return Removed(refusals=[self._remove_from(node, key, now) for key in self._keys(tenant, keys)])
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
        if entry.is_used(now) and not force:
            return ObjectLeased.code
        self._drop(entry, self._next_id(), now)
        return ""

    def _remove_from(self, node: str, key: str, now: float) -> str:
        """One node's part of an object."""
        entry = self._index.readable(key)
        if entry is None or entry.tier_on(node) is None:
            return ObjectNotFound.code
        if {*entry.replicas, *entry.leaving, *entry.tiered} == {node}:
            return self._remove_entry(entry, False, now)
        if entry.is_used(now):
            return ObjectLeased.code
        if node in entry.replicas:
            self._drop_replica(entry, node, now)
        self._tiering.removed_from(node, entry, now)
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

    def _committed(self, entry: PoolObject, now: float) -> None:
        """What else there may be of its key is older."""
        self._removals.committed(entry.key, entry.allocation_id, is_one_away=self._roster.is_one_away)
        self._tiering.committed(entry, now)

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
        if changes is None:
            return []
        return [
            BlocksRemoved(name, keys) if tier is None else BlocksStored(name, keys, tier)
            for name, tier, keys in changes.by_tier()
        ]


def _any_key(key: str) -> bool:
    return True
