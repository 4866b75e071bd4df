"""The pool's objects by key, and how chains of them hang together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from mooncake_core.store.node_space import Extent, NodeSpace
from mooncake_core.store.objects import NOTHING, Changes, PoolObject, check


class ObjectIndex:
    """Which objects there are, and which are being written; keeps the books of nodes and chains with it."""

    def __init__(self, nodes: Mapping[str, NodeSpace]) -> None:
        self._nodes = nodes
        self._by_key: dict[str, PoolObject] = {}
        self._writing: dict[int, PoolObject] = {}
        self._children: dict[str, int] = {}
        self._changes = Changes()

    def __contains__(self, key: str) -> bool:
        """Whether a key is there or being written."""
        return key in self._by_key

    @property
    def num_writing(self) -> int:
        return len(self._writing)

    @property
    def num_readable(self) -> int:
        return len(self._by_key) - sum(not entry.doomed for entry in self._writing.values())

    def get(self, key: str) -> PoolObject | None:
        return self._by_key.get(key)

    def readable(self, key: str) -> PoolObject | None:
        """The object of a key, if it can be read."""
        entry = self._by_key.get(key)
        return entry if entry is not None and entry.readable else None

    def all_readable(self) -> Iterator[PoolObject]:
        return (entry for entry in self._by_key.values() if entry.readable)

    def written_by(self, allocation_id: int) -> PoolObject | None:
        """The object that is being written under this allocation."""
        return self._writing.get(allocation_id)

    def being_written(self) -> list[PoolObject]:
        return list(self._writing.values())

    def begin(self, entry: PoolObject) -> None:
        """An object is going to be written."""
        self._by_key[entry.key] = entry
        self._writing[entry.allocation_id] = entry

    def doom(self, entry: PoolObject) -> None:
        """An object that is being written will not be there when it is whole; its key is free again."""
        if not entry.doomed:
            entry.doomed = True
            del self._by_key[entry.key]

    def publish(self, entry: PoolObject, now: float) -> None:
        """From now on the object can be read, and evicted."""
        self._writing.pop(entry.allocation_id, None)
        self._by_key[entry.key] = entry
        entry.readable = True
        entry.used_at = now
        if entry.replicas:
            self._count_child(entry, 1)
        for name in entry.replicas:
            self._shown(entry, name)

    def add_replica(self, entry: PoolObject, name: str, extent: Extent) -> None:
        """An object is in one node's DRAM more."""
        if entry.readable and not entry.replicas:
            self._count_child(entry, 1)
        entry.replicas[name] = extent
        if entry.readable:
            self._shown(entry, name)

    def drop_replica(self, entry: PoolObject, name: str) -> Extent:
        """A replica goes; what is nowhere any more is forgotten. Returns where it was."""
        extent = self._take_out(entry, name)
        self._gone_from(entry, name)
        return extent

    def begin_leaving(self, entry: PoolObject, name: str) -> Extent:
        """A replica will go, when the node has copied it to its tiers. Returns where it is."""
        extent = self._take_out(entry, name)
        entry.leaving = {**entry.leaving, name: extent}
        return extent

    def rescue(self, entry: PoolObject, name: str) -> None:
        """A replica that was about to go stays."""
        if not entry.replicas:
            self._count_child(entry, 1)
        entry.replicas[name] = entry.leaving[name]
        _leave_no_more(entry, name)
        self._nodes[name].eviction.added(entry.key)

    def end_leaving(self, entry: PoolObject, name: str) -> Extent:
        """A replica that was about to go goes. Returns where it was."""
        extent = entry.leaving[name]
        _leave_no_more(entry, name)
        self._gone_from(entry, name)
        return extent

    def add_tier(self, entry: PoolObject, name: str) -> None:
        """An object is in a node's tiers."""
        if not entry.is_on(name):
            self._changes.stored.setdefault(name, []).append(entry.key)
        if name not in entry.tiered:
            entry.tiered = (*entry.tiered, name)

    def drop_tier(self, entry: PoolObject, name: str) -> None:
        """A node's tiers have it no more; what is nowhere any more is forgotten."""
        _not_in_tier(entry, name)
        self._gone_from(entry, name)

    def outdate(self, key: str, allocation_id: int) -> None:
        """A newer object of a key is known: one that is only in tiers is not what is meant by it any more."""
        entry = self.readable(key)
        if entry is not None and entry.allocation_id < allocation_id and not (entry.replicas or entry.leaving):
            for name in list(entry.tiered):
                self.drop_tier(entry, name)

    def drop_node(self, name: str) -> None:
        """A node is gone with all it had."""
        for entry in [*self._by_key.values(), *(entry for entry in self._writing.values() if entry.doomed)]:
            had_tier = name in entry.tiered
            _not_in_tier(entry, name)
            if name in entry.leaving:
                self.end_leaving(entry, name)
            elif name in entry.replicas:
                self.drop_replica(entry, name)
            elif had_tier:
                self._gone_from(entry, name)

    def may_go(self, key: str, node: str, now: float) -> bool:
        """Whether a node may evict a key: it has it, nobody reads it, and no chain goes on from it."""
        entry = self.readable(key)
        return entry is not None and node in entry.replicas and entry.lease_until <= now and key not in self._children

    def take_changes(self) -> Changes:
        """What changed since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    def check(self, arriving: Set[int] = frozenset()) -> list[str]:
        """What does not add up. `arriving`: allocation ids that have space which is not their object's yet."""
        doomed = [entry for entry in self._writing.values() if entry.doomed]
        objects = [*self._by_key.values(), *doomed]
        return check(self._nodes, objects, set(self._writing), self._children, arriving)

    def _shown(self, entry: PoolObject, name: str) -> None:
        self._nodes[name].eviction.added(entry.key)
        if name not in entry.tiered:
            self._changes.stored.setdefault(name, []).append(entry.key)

    def _take_out(self, entry: PoolObject, name: str) -> Extent:
        """Of what a node may evict, and readers find."""
        extent = entry.replicas.pop(name)
        if entry.readable:
            self._nodes[name].eviction.removed(entry.key)
            if not entry.replicas:
                self._count_child(entry, -1)
        return extent

    def _gone_from(self, entry: PoolObject, name: str) -> None:
        if entry.readable and not entry.is_on(name):
            stored = self._changes.stored.get(name, [])
            if entry.key in stored:  # it came and went with one event
                stored.remove(entry.key)
            else:
                self._changes.removed.setdefault(name, []).append(entry.key)
        if entry.is_nowhere:
            self._forget(entry)

    def _count_child(self, entry: PoolObject, number: int) -> None:
        """Chains count in DRAM: what is in a tier only keeps nothing there."""
        if entry.parent:
            self._children[entry.parent] = self._children.get(entry.parent, 0) + number
            if not self._children[entry.parent]:
                del self._children[entry.parent]

    def _forget(self, entry: PoolObject) -> None:
        if not entry.doomed:
            del self._by_key[entry.key]
        self._writing.pop(entry.allocation_id, None)


def _leave_no_more(entry: PoolObject, name: str) -> None:
    entry.leaving = {node: extent for node, extent in entry.leaving.items() if node != name} or NOTHING


def _not_in_tier(entry: PoolObject, name: str) -> None:
    entry.tiered = tuple(node for node in entry.tiered if node != name)
