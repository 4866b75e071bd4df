"""The pool's objects by key, and how chains and groups of them hang together. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set

from mooncake_core.store.node_space import Extent, NodeSpace
from mooncake_core.store.objects import NOTHING, Changes, PoolObject, check
from mooncake_core.store.pins import HARD, Pins
from mooncake_core.store.tenants import Account
from mooncake_core.wire.messages.tiering import DRAM, Tier


class ObjectIndex:
    """Which objects there are, and which are being written; keeps the books of nodes, chains, groups and tenants with it."""

    def __init__(self, nodes: Mapping[str, NodeSpace]) -> None:
        self._nodes = nodes
        self._by_key: dict[str, PoolObject] = {}
        self._writing: dict[int, PoolObject] = {}
        self._replacing: dict[str, PoolObject] = {}
        """Key → what is being written, where the key names an object that can still be read."""
        self._children: dict[str, int] = {}
        self._groups: dict[str, dict[str, PoolObject]] = {}
        """Group → its objects that can be read, by key."""
        self._held_groups: dict[str, float] = {}
        """Group → until when it must stay, as it was found since changes were last taken."""
        self._pins = Pins()
        self._changes = Changes()

    def __contains__(self, key: str) -> bool:
        """Whether a key is there or being written."""
        return key in self._by_key

    @property
    def num_writing(self) -> int:
        return len(self._writing)

    @property
    def num_readable(self) -> int:
        unnamed = len(self._replacing) + sum(entry.doomed for entry in self._writing.values())
        return len(self._by_key) - len(self._writing) + unnamed

    def get(self, key: str) -> PoolObject | None:
        return self._by_key.get(key)

    def readable(self, key: str) -> PoolObject | None:
        """The object of a key, if it can be read."""
        entry = self._by_key.get(key)
        return entry if entry is not None and entry.readable else None

    def are_readable(self, keys: Sequence[str]) -> list[bool]:
        """Which of these keys have an object that can be read."""
        find = self._by_key.get
        return [(entry := find(key)) is not None and entry.readable for key in keys]

    def keys(self) -> list[str]:
        """Of all objects, and of those being written, the oldest first."""
        return list(self._by_key)

    def all_readable(self) -> Iterator[PoolObject]:
        return (entry for entry in self._by_key.values() if entry.readable)

    def written_by(self, allocation_id: int) -> PoolObject | None:
        """The object that is being written under this allocation."""
        return self._writing.get(allocation_id)

    def being_written(self) -> list[PoolObject]:
        return list(self._writing.values())

    def being_replaced(self, key: str) -> bool:
        """Whether an object that can be read has a successor that is being written."""
        return key in self._replacing

    def replaced_by(self, entry: PoolObject) -> PoolObject | None:
        """What can be read until an object that is being written takes its place."""
        return self._by_key.get(entry.key) if self._replacing.get(entry.key) is entry else None

    def group(self, name: str) -> Mapping[str, PoolObject]:
        """The objects of a group that can be read, by key."""
        return self._groups.get(name, {})

    def begin(self, entry: PoolObject) -> None:
        """An object is going to be written; of a key that can be read already it becomes the successor."""
        entry.position = self._position_after(entry.parent)
        named = self._replacing if entry.key in self._by_key else self._by_key
        named[entry.key] = entry
        self._writing[entry.allocation_id] = entry
        entry.account.used_bytes += entry.extent_bytes

    def doom(self, entry: PoolObject) -> None:
        """An object that is being written will not be there when it is whole; its key is free again."""
        if not entry.doomed:
            entry.doomed = True
            self._unname(entry)

    def publish(self, entry: PoolObject, now: float) -> None:
        """From now on the object can be read, and evicted. One that it replaces must be gone."""
        if self._writing.pop(entry.allocation_id, None) is None:  # a node has reported it
            entry.position = self._position_after(entry.parent)
            entry.account.used_bytes += entry.extent_bytes
            if (writing := self._by_key.get(entry.key)) is not None:
                self._replacing[entry.key] = writing
        self._by_key[entry.key] = entry
        entry.readable = True
        entry.used_at = now
        entry.account.num_objects += 1
        if entry.replicas:
            self._count_child(entry)
        if entry.group:
            self._groups.setdefault(entry.group, {})[entry.key] = entry
        if entry.pin_until:
            self._pins.set(entry, entry.pin_until)
        for name in entry.replicas:
            self._changes.note(name, entry.key, None, DRAM)
            self._rank(entry, name)

    def add_replica(self, entry: PoolObject, name: str, extent: Extent) -> None:
        """An object is in one node's DRAM more."""
        before = entry.tier_on(name)
        entry.account.used_bytes += extent.length
        self._put_in(entry, name, extent)
        self._moved(entry, name, before)

    def drop_replica(self, entry: PoolObject, name: str) -> Extent:
        """A replica goes; what is nowhere any more is forgotten. Returns where it was."""
        before = entry.tier_on(name)
        extent = self._take_out(entry, name)
        entry.account.used_bytes -= extent.length
        self._gone_from(entry, name, before)
        return extent

    def begin_leaving(self, entry: PoolObject, name: str) -> Extent:
        """A replica will go, when the node has copied it to its tiers. Returns where it is."""
        extent = self._take_out(entry, name)
        entry.leaving = {**entry.leaving, name: extent}
        self._nodes[name].begin_leaving(extent)
        return extent

    def rescue(self, entry: PoolObject) -> None:
        """What was about to leave stays."""
        for name in [name for name in entry.leaving if name not in entry.replicas]:
            self._put_in(entry, name, self._leave_no_more(entry, name))

    def end_leaving(self, entry: PoolObject, name: str) -> Extent:
        """A replica that was about to go goes. Returns where it was."""
        before = entry.tier_on(name)
        extent = self._leave_no_more(entry, name)
        entry.account.used_bytes -= extent.length
        self._gone_from(entry, name, before)
        return extent

    def add_tier(self, entry: PoolObject, name: str) -> None:
        """An object is in a node's tiers."""
        before = entry.tier_on(name)
        if name not in entry.tiered:
            entry.tiered = (*entry.tiered, name)
        self._moved(entry, name, before)

    def drop_tier(self, entry: PoolObject, name: str) -> None:
        """A node's tiers have it no more; what is nowhere any more is forgotten."""
        before = entry.tier_on(name)
        entry.tiered = tuple(node for node in entry.tiered if node != name)
        self._gone_from(entry, name, before)

    def copy_begins(self, entry: PoolObject) -> None:
        """A node copies an object from another one: until that ends it stays."""
        entry.copies_under_way += 1

    def copy_ends(self, entry: PoolObject) -> None:
        """The copy is there, or will not be; the object may have gone, by force."""
        entry.copies_under_way -= 1
        self._release([entry])
        self._release_group(entry.group)

    def drop_node(self, name: str) -> None:
        """A node is gone with all it had."""
        unnamed = [entry for entry in self._writing.values() if self._by_key.get(entry.key) is not entry]
        for entry in [*self._by_key.values(), *unnamed]:
            if name in entry.replicas:
                self.drop_replica(entry, name)
            if name in entry.leaving:
                self.end_leaving(entry, name)
            if name in entry.tiered:
                self.drop_tier(entry, name)

    def held_until(self, key: str) -> float:
        """Until when a ranked object is not evicted: to the end of its lease; for ever while a chain goes on from it, or it is
        being copied. One of a group: as long as another one is read, copied or pinned. Whether chains go on from the group
        does not matter: two groups along one chain could hold each other for ever."""
        entry = self._by_key[key]
        if entry.group:
            return self._group_held_until(entry.group)
        return math.inf if key in self._children or entry.copies_under_way else entry.lease_until

    def pin(self, entry: PoolObject, until: float) -> None:
        """Gives a readable object this pin (see pins.py). What is pinned is not ranked by the nodes' eviction policies, and stays
        where it was about to leave."""
        was_pinned = bool(entry.pin_until)
        self._pins.set(entry, until)
        if was_pinned != bool(until):
            for name in entry.replicas:
                if until:
                    self._nodes[name].eviction.removed(entry.key)
                else:
                    self._rank(entry, name)
            self._release_group(entry.group)
        if until:
            self.rescue(entry)

    def end_pins(self, now: float) -> None:
        """Takes the soft pins off that have ended."""
        for entry in self._pins.ended(now):
            self.pin(entry, 0.0)

    def softly_pinned(self, node: str) -> list[PoolObject]:
        """Of a node, the one whose pin ends first first."""
        return self._pins.soft(node)

    def may_go_despite_pin(self, entry: PoolObject, node: str, now: float) -> bool:
        """Whether a node may evict what is softly pinned: it has it, nobody reads or copies it, and no chain goes on from it;
        and if it is of a group, nobody reads or copies one of that, and none is hard-pinned."""
        if node not in entry.replicas or (not entry.group and entry.key in self._children):
            return False
        return all(
            member.lease_until <= now and member.pin_until != HARD and not member.copies_under_way
            for member in self.goes_with(entry)
        )

    def goes_with(self, entry: PoolObject) -> list[PoolObject]:
        """All in DRAM that is evicted when this object is: itself, or its group, the latest first."""
        return self._in_dram(entry.group) if entry.group else [entry]

    def take_changes(self) -> Changes | None:
        """What changed since the last call; None if nothing did."""
        if self._held_groups:
            self._held_groups.clear()
        changes = self._changes
        if not changes.moves:
            return None
        self._changes = Changes()
        return changes

    def check(self, accounts: Iterable[Account], arriving: Set[int]) -> list[str]:
        """What does not add up. `arriving`: allocation ids that have space which is not their object's yet."""
        unnamed = [entry for entry in self._writing.values() if self._by_key.get(entry.key) is not entry]
        problems = check(
            self._nodes, [*self._by_key.values(), *unnamed], set(self._writing), self._children, accounts, arriving
        )
        if any(self._by_key.get(key) in (None, entry) for key, entry in self._replacing.items()):
            problems.append("what is being written replaces nothing")
        grouped = {entry.allocation_id for entry in self.all_readable() if entry.group}
        if grouped != {entry.allocation_id for group in self._groups.values() for entry in group.values()}:
            problems.append("the groups are not those of the objects")
        for node in self._nodes.values():
            problems += [
                f"{node.name} does not know that {key} may go" for key in node.eviction.forgotten(self.held_until)
            ]
        return problems

    def _group_held_until(self, group: str) -> float:
        until = self._held_groups.get(group)
        if until is None:
            members = self._in_dram(group)
            until = math.inf if self._must_stay(members) else max(entry.lease_until for entry in members)
            self._held_groups[group] = until
        return until

    def _in_dram(self, group: str) -> list[PoolObject]:
        """A group's objects that can go, the latest first: what is in a tier only keeps nothing in DRAM."""
        return [entry for entry in reversed(self._groups[group].values()) if entry.replicas]

    def _must_stay(self, members: Collection[PoolObject]) -> bool:
        """Until that is over, and not only until some time."""
        return any(entry.pin_until or entry.copies_under_way for entry in members)

    def _put_in(self, entry: PoolObject, name: str, extent: Extent) -> None:
        """Where readers find it, and a node may evict it."""
        if entry.readable and not entry.replicas:
            self._held_groups.pop(entry.group, None)
            self._count_child(entry)
        entry.replicas[name] = extent
        if entry.readable:
            self._rank(entry, name)

    def _take_out(self, entry: PoolObject, name: str) -> Extent:
        """Of where readers find it, and a node may evict it."""
        extent = entry.replicas.pop(name)
        if entry.readable:
            if not entry.pin_until:
                self._nodes[name].eviction.removed(entry.key)
            if not entry.replicas:
                self._gone_from_dram(entry)
        return extent

    def _leave_no_more(self, entry: PoolObject, name: str) -> Extent:
        extent = entry.leaving[name]
        entry.leaving = {node: kept for node, kept in entry.leaving.items() if node != name} or NOTHING
        self._nodes[name].end_leaving(extent)
        return extent

    def _moved(self, entry: PoolObject, name: str, before: Tier | None) -> None:
        if entry.readable and (after := entry.tier_on(name)) != before:
            self._changes.note(name, entry.key, before, after)

    def _gone_from(self, entry: PoolObject, name: str, before: Tier | None) -> None:
        self._moved(entry, name, before)
        if entry.is_nowhere:
            self._forget(entry)

    def _count_child(self, entry: PoolObject) -> None:
        """Chains count in DRAM: what is in a tier only keeps nothing there."""
        if entry.parent:
            self._children[entry.parent] = self._children.get(entry.parent, 0) + 1

    def _gone_from_dram(self, entry: PoolObject) -> None:
        """It keeps nothing there any more: neither the object before it, nor its group."""
        if entry.group and (entry.pin_until or entry.copies_under_way):
            self._release_group(entry.group)
        if entry.parent:
            self._children[entry.parent] -= 1
            if not self._children[entry.parent]:
                del self._children[entry.parent]
                if (before := self.readable(entry.parent)) is not None:
                    self._release([before])

    def _forget(self, entry: PoolObject) -> None:
        if not entry.doomed:
            self._unname(entry)
        self._writing.pop(entry.allocation_id, None)
        if not entry.readable:
            return
        entry.account.num_objects -= 1
        if entry.pin_until:
            self._pins.forget(entry)
        if entry.group:
            self._leave_group(entry)

    def _rank(self, entry: PoolObject, name: str) -> None:
        """What is pinned is not ranked."""
        if not entry.pin_until:
            eviction = self._nodes[name].eviction
            eviction.added(entry.key, size_bytes=entry.size_bytes, position=entry.position)

    def _release_group(self, group: str) -> None:
        """What held a group does so no more."""
        self._held_groups.pop(group, None)
        self._release(self.group(group).values())

    def _release(self, entries: Iterable[PoolObject]) -> None:
        for entry in entries:
            for name in entry.replicas:
                self._nodes[name].eviction.released(entry.key)

    def _position_after(self, parent: str) -> int:
        """In a chain; 1 where something comes before it that is not known."""
        entry = self._by_key.get(parent)
        return entry.position + 1 if entry is not None else int(bool(parent))

    def _unname(self, entry: PoolObject) -> None:
        """The key is not this object's any more: it is that of its successor, if there is one, or free."""
        successor = self._replacing.pop(entry.key, None)
        if successor is None:
            del self._by_key[entry.key]
        elif successor is not entry:
            self._by_key[entry.key] = successor

    def _leave_group(self, entry: PoolObject) -> None:
        members = self._groups[entry.group]
        del members[entry.key]
        if not members:
            del self._groups[entry.group]
            self._held_groups.pop(entry.group, None)
