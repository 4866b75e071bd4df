"""Rounds of eviction: when one begins, how far it goes, and whether it gets there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from mooncake_core.store.events import EvictionGoesOn, EvictionStalled
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import Counters, PoolObject

STEP_OBJECTS: Final = 256
"""Evicted at once at most: others have their turn before the round goes on."""

Evict = Callable[[PoolObject, NodeSpace, float], None]
"""Takes an object from a node (object, node, now)."""


def victims(node: NodeSpace, index: ObjectIndex, now: float) -> Iterator[PoolObject]:
    """What a node evicts, in the order of its policy; the caller takes each one from it before it asks for the next."""
    while (key := node.eviction.next_victim(lambda key: index.held_until(key, now), now)) is not None:
        entry = index.readable(key)
        assert entry is not None  # only what can be read is ranked
        yield entry


def pinned_victims(node: NodeSpace, index: ObjectIndex, now: float) -> Iterator[PoolObject]:
    """What goes where nothing else can: softly pinned objects, the one whose pin ends first first."""
    return (entry for entry in index.softly_pinned(node.name) if index.may_go_despite_pin(entry, node.name, now))


class Evicting:
    """The rounds of all nodes."""

    def __init__(
        self,
        nodes: Mapping[str, NodeSpace],
        index: ObjectIndex,
        counters: Counters,
        evict: Evict,
        *,
        high_watermark: float,
        low_watermark: float,
    ) -> None:
        self._nodes = nodes
        self._index = index
        self._counters = counters
        self._evict = evict
        self._high_watermark = high_watermark
        self._low_watermark = low_watermark
        self._targets: dict[str, tuple[float, float]] = {}
        """Node → bytes of objects it may keep; and how many would do, where only pinned objects are left. Its round is not
        at its end."""
        self._stalled: set[str] = set()
        self._notices: list[EvictionStalled | EvictionGoesOn] = []
        self._paused_at = 0.0

    def make_room(self, node: NodeSpace, now: float, refused_bytes: int) -> None:
        """Begins a round where objects exceed the high watermark, down to the low one; and where a put was just refused, for
        want of bytes, of slots, or of a long enough extent, so that the next one finds room: at least as much as it wanted."""
        if not refused_bytes and not self._too_full(node):
            return
        wanted = node.live_bytes - refused_bytes
        target = min(self._low_watermark * node.offer.capacity_bytes, wanted)
        enough = min(self._high_watermark * node.offer.capacity_bytes, wanted)
        if (under_way := self._targets.get(node.name)) is None:
            self._counters.eviction_rounds += 1
        else:
            target, enough = min(target, under_way[0]), min(enough, under_way[1])
        self._targets[node.name] = target, enough
        self._step(node, now)

    def go_on(self, now: float) -> None:
        """Time has passed: rounds that are not at their end go on."""
        for name in list(self._targets):
            if name in self._nodes:
                self._step(self._nodes[name], now)
            else:
                del self._targets[name]

    def next_deadline(self) -> float | None:
        """A round that is not at its end goes on at once."""
        return self._paused_at if self._targets else None

    def stalled_nodes(self) -> list[str]:
        """Too full, and nothing there may go."""
        return sorted(self._stalled & self._nodes.keys())

    def notices(self) -> list[EvictionStalled | EvictionGoesOn]:
        """What people should hear since the last call."""
        for name in list(self._stalled):
            if name not in self._nodes:
                self._stalled.remove(name)
            elif self._has_room(self._nodes[name]):
                self._unstall(name)
        notices, self._notices = self._notices, []
        return notices

    def _step(self, node: NodeSpace, now: float) -> None:
        """Evicts until the round's target, or for as long as its turn lasts."""
        self._paused_at = now
        target, enough = self._targets[node.name]
        found, pinned = victims(node, self._index, now), pinned_victims(node, self._index, now)
        for _ in range(STEP_OBJECTS):
            if node.live_bytes <= target:
                self._unstall(node.name)
                break
            entry = next(found, None)
            if entry is None and node.live_bytes > enough:
                entry = next(pinned, None)
            if entry is None:
                self._found_nothing(node)
                break
            self._evict(entry, node, now)
        else:
            return
        del self._targets[node.name]

    def _found_nothing(self, node: NodeSpace) -> None:
        if not self._crowded(node):
            return  # there is room, or will be when what has gone is cleared
        self._counters.stalled_rounds += 1
        if node.name not in self._stalled:
            self._stalled.add(node.name)
            self._notices.append(EvictionStalled(node.name, node.live_bytes, node.offer.capacity_bytes))

    def _unstall(self, name: str) -> None:
        if name in self._stalled:
            self._stalled.remove(name)
            self._notices.append(EvictionGoesOn(name))

    def _too_full(self, node: NodeSpace) -> bool:
        return node.live_bytes > self._high_watermark * node.offer.capacity_bytes

    def _crowded(self, node: NodeSpace) -> bool:
        """Objects have all the space, or all the slots."""
        return self._too_full(node) or not node.spare_slots

    def _has_room(self, node: NodeSpace) -> bool:
        return node.spare_slots > 0 and node.live_bytes <= self._low_watermark * node.offer.capacity_bytes
