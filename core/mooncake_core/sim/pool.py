"""The pool's blocks over all simulated nodes: which node has what, in which tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mooncake_core.sim.block_cache import BlockCache


class Source(NamedTuple):
    """Blocks in a row that one node can supply from one tier."""

    node: str
    tier: int
    keys: Sequence[bytes]


class Pool:
    """Nodes and their blocks; says which change."""

    def __init__(self, changed: Callable[[str, Sequence[bytes], Sequence[bytes]], None]) -> None:
        """`changed` hears of a node's new blocks and of those it has lost."""
        self._changed = changed
        self._nodes: dict[str, BlockCache] = {}
        self._names: list[str] = []
        self._bits: dict[str, int] = {}
        self._masks: dict[bytes, int] = {}
        """Block → bit mask of nodes."""

    def add_node(self, name: str, cache: BlockCache) -> None:
        """A node contributes."""
        self._nodes[name] = cache
        self._bits[name] = 1 << len(self._names)
        self._names.append(name)

    def __contains__(self, key: bytes) -> bool:
        return key in self._masks

    def __len__(self) -> int:
        return len(self._masks)

    def node(self, name: str) -> BlockCache:
        """A node's blocks."""
        return self._nodes[name]

    def sources(self, keys: Sequence[bytes], *, without: str) -> list[Source]:
        """Who can supply these blocks, up to the first that nobody has; the same node as long as it can."""
        found: list[Source] = []
        at = 0
        other = ~self._bits.get(without, 0)
        while at < len(keys):
            mask = self._masks.get(keys[at], 0) & other
            if not mask:
                break
            node = self._longest(keys, at, mask)
            bit, cache = self._bits[node], self._nodes[node]
            tier = cache.tier_of(keys[at])
            begin = at
            while at < len(keys) and self._masks.get(keys[at], 0) & bit and cache.tier_of(keys[at]) == tier:
                at += 1
            found.append(Source(node, tier, keys[begin:at]))
        return found

    def use(self, name: str, keys: Sequence[bytes], now: float) -> None:
        """A node's blocks are read."""
        self._lost(name, self._nodes[name].use(keys, now))

    def store(self, name: str, keys: Sequence[bytes], now: float) -> None:
        """A node is to have these blocks."""
        new, gone = self._nodes[name].store(keys, now)
        bit, masks = self._bits[name], self._masks
        for key in new:
            masks[key] = masks.get(key, 0) | bit
        if new:
            self._changed(name, new, ())
        self._lost(name, gone)

    def clear(self, name: str) -> None:
        """A node is gone with all it had."""
        self._lost(name, self._nodes[name].clear())

    def _lost(self, name: str, keys: Sequence[bytes]) -> None:
        if not keys:
            return
        bit, masks = self._bits[name], self._masks
        for key in keys:
            mask = masks.get(key, 0) & ~bit
            if mask:
                masks[key] = mask
            else:
                masks.pop(key, None)
        self._changed(name, (), keys)

    def _longest(self, keys: Sequence[bytes], at: int, mask: int) -> str:
        """The node that has most blocks from there on; of equal ones the one that joined first."""
        for key in keys[at + 1 :]:
            both = mask & self._masks.get(key, 0)
            if not both:
                break
            mask = both
        return self._names[(mask & -mask).bit_length() - 1]
