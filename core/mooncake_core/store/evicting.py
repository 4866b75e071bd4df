"""Rounds of eviction: when one begins, how far it goes, and whether it gets there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mooncake_core.store.events import EvictionGoesOn, EvictionStalled
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import Counters, PoolObject

STEP_OBJECTS: Final = 256
"""Evicted at once at most, from all nodes together: others have their turn before the rounds go on."""

Evict = Callable[[PoolObject, NodeSpace, float], None]
"""Takes an object from a node (object, node, now)."""


def victims(node: NodeSpace, index: ObjectIndex, now: float) -> Iterator[PoolObject]:
    """What a node evicts, in the order of its policy; the caller takes each one from it before it asks for the next."""
    while (key := node.eviction.next_victim(index.held_until, now)) is not None:
        entry = index.readable(key)
        assert entry is not None  # only what can be read is ranked
        yield entry


@dataclass(frozen=True, slots=True)
class _Round:
    """How far a round goes: bytes of objects that a node may keep."""

    target_bytes: float
    enough_bytes: float
    """As far as it goes where only softly pinned objects are left."""

    def together_with(self, other: _Round | None) -> _Round:
        if other is None:
            return self
        return _Round(min(self.target_bytes, other.target_bytes), min(self.enough_bytes, other.enough_bytes))


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
        self._rounds: dict[str, _Round] = {}
        """Node → its round that is not at its end."""
        self._stalled: set[str] = set()
        self._notices: list[EvictionStalled | EvictionGoesOn] = []
        self._turn_at = 0.0
        self._turn_left = STEP_OBJECTS

    def make_room(self, node: NodeSpace, now: float, refused_bytes: int) -> None:
        """Begins a round where objects exceed the high watermark, down to the low one; and where a put was just refused, for
        want of bytes, of slots, or of a long enough extent, so that the next one finds room: at least as much as it wanted, what
        is about to leave included."""
        refused_bytes = max(0, refused_bytes - node.leaving_bytes)
        if not refused_bytes and not self._too_full(node):
            return
        if node.name not in self._rounds:
            self._counters.eviction_rounds += 1
        self._rounds[node.name] = self._round(node, refused_bytes).together_with(self._rounds.get(node.name))
        self._step(node, now)

    def go_on(self, now: float) -> None:
        """Time has passed: rounds that are not at their end go on."""
        for name in list(self._rounds):
            if name in self._nodes:
                self._step(self._nodes[name], now)
            else:
                del self._rounds[name]

    def next_deadline(self) -> float | None:
        """A round that is not at its end goes on at once."""
        return self._turn_at if self._rounds else None

    def stalled_nodes(self) -> list[str]:
        """Too full, and nothing there may go."""
        return sorted(self._stalled & self._nodes.keys())

    def notices(self) -> list[EvictionStalled | EvictionGoesOn]:
        """What people should hear since the last call."""
        for name in list(self._stalled) if self._stalled else ():
            if name not in self._nodes:
                self._stalled.remove(name)
            elif self._has_room(self._nodes[name]):
                self._unstall(name)
        if not self._notices:
            return []
        notices, self._notices = self._notices, []
        return notices

    def _step(self, node: NodeSpace, now: float) -> None:
        """Evicts until the round's target, or for as long as the turn lasts."""
        if now != self._turn_at:
            self._turn_at, self._turn_left = now, STEP_OBJECTS
        found = self._victims(node, now)
        while self._turn_left:
            if node.live_bytes <= self._rounds[node.name].target_bytes:
                self._unstall(node.name)
                break
            if (entry := next(found, None)) is None:
                self._found_nothing(node)
                break
            self._evict(entry, node, now)
            self._turn_left -= 1
        else:
            return
        del self._rounds[node.name]

    def _victims(self, node: NodeSpace, now: float) -> Iterator[PoolObject]:
        """What may go; and then what is softly pinned, but only as much as must."""
        yield from victims(node, self._index, now)
        enough_bytes = self._rounds[node.name].enough_bytes
        for entry in self._index.softly_pinned(node.name) if node.live_bytes > enough_bytes else ():
            if self._index.may_go_despite_pin(entry, node.name, now):
                yield entry
            if node.live_bytes <= enough_bytes:
                return

    def _round(self, node: NodeSpace, refused_bytes: int) -> _Round:
        capacity, wanted = node.offer.capacity_bytes, node.live_bytes - refused_bytes
        return _Round(min(self._low_watermark * capacity, wanted), min(self._high_watermark * capacity, wanted))

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
