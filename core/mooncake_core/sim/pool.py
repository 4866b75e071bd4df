"""The pool's blocks over all simulated nodes: which node has what, in which tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mooncake_core.conductor import events as e
from mooncake_core.kvcache import masks
from mooncake_core.sim.block_cache import BlockCache
from mooncake_core.wire.messages.tiering import LOWER


class Source(NamedTuple):
    """Blocks in a row that one node can supply from DRAM, or from below."""

    node: str
    lower: bool
    keys: Sequence[bytes]


class Prefix(NamedTuple):
    """Where an instance has leading blocks of a prompt from."""

    blocks: int
    """All of them."""
    local: int
    """That its own node has."""
    loaded: int
    """Of these: below DRAM, and nobody else has them in DRAM."""
    sources: list[Source]
    """Of the others, and of those that others have in DRAM, and its own node below."""


class Pool:
    """Nodes and their blocks; says which change."""

    def __init__(self, changed: Callable[[e.BlocksStored | e.BlocksRemoved], None]) -> None:
        self._changed = changed
        self._nodes: dict[str, BlockCache] = {}
        self._names: list[str] = []
        self._bits: dict[str, int] = {}
        self._masks: dict[bytes, int] = {}
        """Block → bit mask of nodes."""
        self._lower: dict[bytes, int] = {}
        """Block → bit mask of those of them that have it below DRAM."""

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

    def prefix(self, name: str, keys: Sequence[bytes], matched: int) -> Prefix:
        """What the instance of a node reads of a prompt of which the Conductor has counted on so many blocks. More of its own
        are welcome, where they are in DRAM: to load those might take longer than to compute them."""
        cache, absent = self._nodes[name], len(self._nodes[name].tiers)
        local = loaded = 0
        elsewhere: list[bytes] = []
        for key in keys:
            tier = cache.tier_of(key)
            if tier == absent or (tier and local >= matched):
                break
            if tier and self._in_dram(key):
                elsewhere.append(key)
            elif tier:
                loaded += 1
            local += 1
        sources = self.sources([*elsewhere, *keys[local:matched]], without=name)
        fetched = sum(len(source.keys) for source in sources)
        return Prefix(local + fetched - len(elsewhere), local, loaded, sources)

    def sources(self, keys: Sequence[bytes], *, without: str) -> list[Source]:
        """Who can supply these blocks, up to the first that nobody has; the same node as long as it can, and no other is
        faster."""
        found: list[Source] = []
        at = 0
        others = ~self._bits.get(without, 0)
        while at < len(keys):
            mask, lower = self._fastest(keys[at], others)
            if not mask:
                break
            node = self._longest(keys, at, mask)
            bit, begin = self._bits[node], at
            while at < len(keys):
                mask, there = self._fastest(keys[at], others)
                if not mask & bit or there != lower:
                    break
                at += 1
            found.append(Source(node, lower, keys[begin:at]))
        return found

    def use(self, name: str, keys: Sequence[bytes], now: float) -> None:
        """A node's blocks are read."""
        self._lost(name, self._nodes[name].use(keys, now))
        self._moved(name)

    def store(self, name: str, keys: Sequence[bytes], now: float) -> None:
        """A node is to have these blocks."""
        new, gone = self._nodes[name].store(keys, now)
        if new:
            masks.add(self._masks, self._bits[name], new)
            self._changed(e.BlocksStored(name, new))
        self._lost(name, gone)
        self._moved(name)

    def clear(self, name: str) -> None:
        """A node is gone with all it had."""
        self._lost(name, self._nodes[name].clear())

    def _in_dram(self, key: bytes) -> bool:
        return self._masks.get(key, 0) != self._lower.get(key, 0)

    def _fastest(self, key: bytes, among: int) -> tuple[int, bool]:
        """Of some nodes, those that have a block in DRAM; where none has, those that have it below, and True."""
        mask = self._masks.get(key, 0) & among
        lower = mask & self._lower.get(key, 0)
        return (mask, bool(lower)) if mask == lower else (mask & ~lower, False)

    def _moved(self, name: str) -> None:
        upper, lower = self._nodes[name].take_moved()
        if upper:
            masks.take(self._lower, self._bits[name], upper)
            self._changed(e.BlocksStored(name, upper))
        if lower:
            masks.add(self._lower, self._bits[name], lower)
            self._changed(e.BlocksStored(name, lower, LOWER))

    def _lost(self, name: str, keys: Sequence[bytes]) -> None:
        if not keys:
            return
        masks.take(self._masks, self._bits[name], keys)
        if self._lower:
            masks.take(self._lower, self._bits[name], keys)
        self._changed(e.BlocksRemoved(name, keys))

    def _longest(self, keys: Sequence[bytes], at: int, mask: int) -> str:
        """The node that has most blocks from there on; of equal ones the one that joined first."""
        for key in keys[at + 1 :]:
            both = mask & self._fastest(key, mask)[0]
            if not both:
                break
            mask = both
        return self._names[(mask & -mask).bit_length() - 1]
