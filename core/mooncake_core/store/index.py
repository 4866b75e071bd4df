"""The pool's objects by key, and how chains of them hang together. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from mooncake_core.store.node_space import Extent, NodeSpace
from mooncake_core.store.objects import Changes, PoolObject, check


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
        entry.position = self._position_after(entry.parent)
        self._by_key[entry.key] = entry
        self._writing[entry.allocation_id] = entry

    def doom(self, entry: PoolObject) -> None:
        """An object that is being written will not be there when it is whole; its key is free again."""
        if not entry.doomed:
            entry.doomed = True
            del self._by_key[entry.key]

    def publish(self, entry: PoolObject, now: float) -> None:
        """From now on the object can be read, and evicted."""
        if self._writing.pop(entry.allocation_id, None) is None:
            entry.position = self._position_after(entry.parent)
        self._by_key[entry.key] = entry
        entry.readable = True
        entry.used_at = now
        if entry.parent:
            self._children[entry.parent] = self._children.get(entry.parent, 0) + 1
        for name in entry.replicas:
            self._shown(entry, name)

    def add_replica(self, entry: PoolObject, name: str, extent: Extent) -> None:
        """An object is on one node more."""
        entry.replicas[name] = extent
        if entry.readable:
            self._shown(entry, name)

    def drop_replica(self, entry: PoolObject, name: str) -> Extent:
        """A replica goes; the last one takes the object along. Returns where it was."""
        extent = entry.replicas.pop(name)
        if entry.readable:
            self._nodes[name].eviction.removed(entry.key)
            self._changes.removed.setdefault(name, []).append(entry.key)
        if not entry.replicas:
            self._forget(entry)
        return extent

    def drop_node(self, name: str) -> None:
        """A node is gone with all it had."""
        for entry in [*self._by_key.values(), *(entry for entry in self._writing.values() if entry.doomed)]:
            if name in entry.replicas:
                self.drop_replica(entry, name)

    def held_until(self, key: str) -> float:
        """Until when a readable object is not evicted: to the end of its lease; for ever while a chain goes on from it."""
        return math.inf if key in self._children else self._by_key[key].lease_until

    def take_changes(self) -> Changes:
        """What changed since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    def check(self) -> list[str]:
        """What does not add up."""
        doomed = [entry for entry in self._writing.values() if entry.doomed]
        problems = check(self._nodes, [*self._by_key.values(), *doomed], set(self._writing), self._children)
        for node in self._nodes.values():
            problems += [
                f"{node.name} does not know that {key} may go" for key in node.eviction.forgotten(self.held_until)
            ]
        return problems

    def _shown(self, entry: PoolObject, name: str) -> None:
        self._nodes[name].eviction.added(entry.key, size_bytes=entry.size_bytes, position=entry.position)
        self._changes.stored.setdefault(name, []).append(entry.key)

    def _forget(self, entry: PoolObject) -> None:
        if not entry.doomed:
            del self._by_key[entry.key]
        self._writing.pop(entry.allocation_id, None)
        if entry.readable and entry.parent:
            self._children[entry.parent] -= 1
            if not self._children[entry.parent]:
                del self._children[entry.parent]
                self._release(entry.parent)

    def _release(self, key: str) -> None:
        """Nothing holds an object any more but leases."""
        entry = self.readable(key)
        for name in entry.replicas if entry is not None else ():
            self._nodes[name].eviction.released(key)

    def _position_after(self, parent: str) -> int:
        """In a chain; 1 where something comes before it that is not known."""
        entry = self._by_key.get(parent)
        return entry.position + 1 if entry is not None else int(bool(parent))
