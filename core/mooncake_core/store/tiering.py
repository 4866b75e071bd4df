"""The pool's objects below DRAM: who is demoted, who is promoted, and who waits for that. Pure.

An object that DRAM has no room for is copied first and loses its place when the node has answered (`leaving`). A get of an
object that is only in a tier takes space on that node, has it brought there, and is answered then, or at its deadline. What
a promoted object leaves in the tier stays there: it is not written again. See docs/decisions/0022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.layout import extent_bytes
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import Counters, PoolObject
from mooncake_core.store.promotions import Promotions
from mooncake_core.store.removals import Removals
from mooncake_core.store.replicas import Replicas
from mooncake_core.store.tenants import Tenants
from mooncake_core.store.tier_events import (
    AskTierReport,
    DemoteObjects,
    ForgetObjects,
    ObjectsLoaded,
    PromoteObjects,
    TierAnswered,
    TierCommand,
)
from mooncake_core.store.tier_node import Arrival, Copy, TierNode
from mooncake_core.store.tiers.contract import TierKey
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.pool import Get
from mooncake_core.wire.messages.tiering import Demoted, Promoted, Promotion, TieredObject, TierFill, TierReport

ROOM_AGAIN_S: Final = 0.1

MakeRoom = Callable[[NodeSpace, float, int], None]
Outdate = Callable[[str, int, float], None]


class Tiering:
    """What concerns tiers in the pool."""

    def __init__(
        self,
        nodes: Mapping[str, NodeSpace],
        index: ObjectIndex,
        tenants: Tenants,
        removals: Removals,
        *,
        promote_timeout_s: float,
        lease_s: float,
        make_room: MakeRoom,
        outdate: Outdate,
        counters: Counters,
    ) -> None:
        """`make_room(node, now, num_bytes)` evicts so much from a node, `outdate(key, allocation_id, now)` drops what is older of
        a key; `lease_s` protects what was promoted for a reader."""
        self._nodes = nodes
        self._index = index
        self._tenants = tenants
        self._lease_s = lease_s
        self._make_room = make_room
        self._outdate = outdate
        self._counters = counters
        self._tiers: dict[str, TierNode] = {}
        self._stirred: dict[TierNode, None] = {}
        """Those that may have something to ask, or wait for a time: a question need not look at the others."""
        self._removals = removals
        self._promotions = Promotions(promote_timeout_s)
        self._promote_timeout_s = promote_timeout_s
        self._loaded: list[ObjectsLoaded] = []
        self._make_room_at: float | None = None
        """When objects that wait for a place are tried again."""

    def follow_roster(self) -> None:
        """Nodes have come or gone."""
        for name, tier in list(self._tiers.items()):
            node = self._nodes.get(name)
            if node is None or node.incarnation != tier.incarnation:
                self._stirred.pop(self._tiers.pop(name), None)
                self._promotions.node_left(name)
        for name, node in self._nodes.items():
            if node.offer.tiers and name not in self._tiers:
                self._tiers[name] = TierNode(
                    name,
                    node.incarnation,
                    node.offer.tiers,
                    write_through=node.offer.write_through,
                    stirred=self._stirred,
                )

    @property
    def is_needed(self) -> bool:
        """Whether a node has tiers, or a get waits for one that had."""
        return bool(self._tiers) or self._promotions.is_waited_for

    # What the pool tells

    def demote(self, entry: PoolObject, name: str, now: float) -> bool:
        """Whether the node copies the object to its tiers first; else its place in DRAM can be given up at once."""
        tier = self._tiers.get(name)
        if tier is None:
            return False
        if name in entry.tiered:
            self._counters.demoted += 1
            return False
        if name in entry.leaving:  # it was copied to the node from another one meanwhile
            return False
        extent = self._index.begin_leaving(entry, name)
        tier.copy(Copy(entry, extent, now))
        return True

    def committed(self, entry: PoolObject, now: float) -> None:
        """An object was put: where nodes write through, it is copied now."""
        for name, extent in entry.replicas.items():
            tier = self._tiers.get(name)
            if tier is not None and tier.write_through:
                tier.copy(Copy(entry, extent, now))

    def removed(self, entry: PoolObject, before: int, now: float) -> None:
        """An object is gone, as is all that was put under its key with a smaller id: also from tiers, of nodes that are away
        too."""
        self._removals.removed(entry.key, before)
        for name in (*entry.leaving, *entry.tiered):
            self.removed_from(name, entry, now)

    def removed_from(self, name: str, entry: PoolObject, now: float) -> None:
        """A node's tiers are to have an object no more, nor what is on its way to them."""
        if name in entry.leaving:
            self._give_up_leaving(entry, name, now)
        if name in entry.tiered:
            self._index.drop_tier(entry, name)
            self._tiers[name].forget(TierKey(entry.key, entry.allocation_id))

    def all_removed(self, tenant: str, before: int) -> None:
        """Whatever was put with a smaller id is gone, also what is not known here: a tenant's, or if none is named, all."""
        if tenant:
            self._removals.all_of_tenant_removed(tenant, before)
        else:
            self._removals.all_removed(before)

    def hold(self, token: int, question: Get, keys: Sequence[str], now: float) -> bool:
        """Whether the answer to a get must wait, because objects have to be promoted first. `keys`: as they are in the index."""
        found = [entry for key in keys if (entry := self._index.readable(key)) is not None]
        awaited = [entry for entry in found if self._can_come(entry)]
        if not awaited:
            return False
        for entry in found:
            if entry.replicas:  # it must not go while the rest comes
                entry.lease_until = max(entry.lease_until, now + self._promote_timeout_s)
        for entry in awaited:
            self._promotions.want(entry, now)
        self._promotions.hold(token, question, awaited, now)
        return True

    def prefetch(self, keys: Sequence[str], now: float) -> int:
        """Brings up what is only in a tier; how many objects that are."""
        found = [entry for key in keys if (entry := self._index.readable(key)) is not None]
        wanted = [entry for entry in found if self._can_come(entry)]
        for entry in wanted:
            self._promotions.want(entry, now)
        return len(wanted)

    # What nodes answer

    def handle(self, event: TierAnswered, now: float) -> None:
        asked, reply = event.asked, event.reply
        tier = self._tiers.get(asked.name)
        if tier is None or tier.incarnation != asked.incarnation:
            return
        match asked, reply:
            case DemoteObjects(), Demoted() as demoted:
                self._demoted(tier, demoted, now)
            case PromoteObjects(objects=objects), Promoted(tiers=kinds):
                num_bytes = sum(one.size_bytes for one, kind in zip(objects, kinds, strict=True) if kind)
                if loaded := tier.loaded(num_bytes, now):
                    self._loaded.append(loaded)
                for wanted, kind in zip(objects, kinds, strict=True):
                    self._promoted(tier, wanted, kind, now)
            case AskTierReport(), TierReport() as report:
                tier.fills = report.tiers
                for about in report.objects:
                    self._adopt(tier, about, now)
                tier.reported(report.next_cursor)
            case ForgetObjects(names=names), Done():
                tier.forgot(names)
            case _:
                tier.unanswered(asked, now)
                if isinstance(asked, DemoteObjects):
                    self._demoted(tier, None, now)

    def requests(self, now: float) -> list[TierCommand | ObjectsLoaded]:
        """What nodes are to be asked because of what has happened, and what their answers say."""
        for tier in list(self._stirred):
            for copy in tier.overdue(now):
                self._leave(tier, copy, now)
        self._place(now)
        commands: list[TierCommand | ObjectsLoaded] = [*self._loaded]
        self._loaded.clear()
        for tier in list(self._stirred):
            if self._nodes[tier.name].ready:
                commands += tier.requests(now)
                if not tier.waits:
                    del self._stirred[tier]
        return commands

    def answerable(self, now: float) -> list[tuple[int, Get, float]]:
        """(token, question, how long it has waited) of the gets that have waited long enough."""
        return self._promotions.answerable(now)

    def deadlines(self) -> Iterator[float]:
        """When time itself is the next event."""
        for tier in self._stirred:
            yield from tier.deadlines()
        if (held_until := self._promotions.next_deadline()) is not None:
            yield held_until
        if self._make_room_at is not None:
            yield self._make_room_at

    def fills(self) -> dict[str, list[TierFill]]:
        """Node → its tiers, as it last told."""
        return {name: list(tier.fills) for name, tier in self._tiers.items()}

    def arriving(self) -> set[int]:
        """Allocation ids that have space which is not their object's yet."""
        return {arrival.entry.allocation_id for tier in self._tiers.values() for arrival in tier.arrivals()}

    # Down

    def _demoted(self, tier: TierNode, reply: Demoted | None, now: float) -> None:
        copies = tier.copied()
        if reply is not None:
            tier.fills = reply.tiers
            for about in reply.stored:
                self._adopt(tier, about, now)
            for dropped in reply.dropped:
                self._drop_tier(tier, dropped.key, dropped.allocation_id)
        for copy in copies:
            self._leave(tier, copy, now)

    def _leave(self, tier: TierNode, copy: Copy, now: float) -> None:
        """A copy was made, or will not be: its place in DRAM is given up, unless it was wanted again meanwhile."""
        entry = copy.entry
        if entry.leaving.get(tier.name) == copy.extent:
            self._counters.demoted += tier.name in entry.tiered
            self._give_up_leaving(entry, tier.name, now)

    def _give_up_leaving(self, entry: PoolObject, name: str, now: float) -> None:
        extent = self._index.end_leaving(entry, name)
        self._nodes[name].give_up(extent, entry.lease_until, now)

    def _adopt(self, tier: TierNode, about: TieredObject, now: float) -> None:
        """A tier holds an object; of a key the newest object counts."""
        name = TierKey(about.key, about.allocation_id)
        self._outdate(about.key, about.allocation_id, now)
        entry = self._index.readable(about.key)
        if entry is not None and entry.allocation_id == about.allocation_id:
            self._index.add_tier(entry, tier.name)
        elif entry is not None or self._removals.covers(name):
            tier.forget(name)
        else:
            owner = self._tenants.owner_of(about.key)
            entry = PoolObject(about.key, about.parent, about.size_bytes, about.allocation_id, Replicas(), owner)
            entry.checksum = about.checksum
            self._index.publish(entry, now)
            self._index.add_tier(entry, tier.name)

    def _drop_tier(self, tier: TierNode, key: str, allocation_id: int) -> None:
        entry = self._index.get(key)
        if entry is not None and entry.allocation_id == allocation_id and tier.name in entry.tiered:
            self._index.drop_tier(entry, tier.name)

    # Up

    def _can_come(self, entry: PoolObject) -> bool:
        """Whether it is in no DRAM, and can be brought there; what was about to leave stays instead. A node that drains takes
        nothing in."""
        if not entry.replicas:
            self._index.rescue(entry)
        return not entry.replicas and bool(self._takers(entry))

    def _takers(self, entry: PoolObject) -> list[str]:
        return [name for name in entry.tiered if not self._nodes[name].draining]

    def _place(self, now: float) -> None:
        """Space for what waits; where there is none, objects make room, and it is tried again when they have."""
        missing: dict[str, int] = {}
        for entry in self._promotions.waiting(now):
            takers = self._takers(entry)
            length = extent_bytes(entry.key, entry.parent, entry.size_bytes)
            if not takers:
                self._promotions.ended(entry.allocation_id)
            elif not any(self._place_on(name, entry, length) for name in takers if name not in missing):
                missing[takers[0]] = missing.get(takers[0], 0) + length
        if not missing:
            self._make_room_at = None
        elif self._make_room_at is None or self._make_room_at <= now:
            self._make_room_at = now + ROOM_AGAIN_S  # leases may keep all there is
            for name, num_bytes in missing.items():
                self._make_room(self._nodes[name], now, num_bytes)

    def _place_on(self, name: str, entry: PoolObject, length: int) -> bool:
        extent = self._nodes[name].allocate(length, entry.allocation_id)
        if extent is None:
            return False
        self._tiers[name].bring(Arrival(entry, extent))
        self._promotions.placed(entry.allocation_id, name)
        return True

    def _promoted(self, tier: TierNode, asked: Promotion, kind: str, now: float) -> None:
        arrival = tier.arrived(asked.allocation_id)
        if arrival is None:
            return
        entry = arrival.entry
        if not kind:
            self._drop_tier(tier, entry.key, entry.allocation_id)
        if kind and self._index.get(entry.key) is entry and tier.name not in entry.replicas:
            self._index.add_replica(entry, tier.name, arrival.extent)
            entry.came_from = kind
            entry.lease_until = max(entry.lease_until, now + self._lease_s)
        else:
            self._nodes[tier.name].give_up(arrival.extent, now, now)
        if entry.replicas or not entry.tiered:
            self._promotions.ended(entry.allocation_id)
        else:
            self._promotions.failed(entry.allocation_id)
