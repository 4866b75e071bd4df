"""Blocks of a node, in its tiers: DRAM, and what lies below. Evicted by the pool's own policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mooncake_core.kvcache.keys import pool_key
from mooncake_core.store.eviction import Eviction
from mooncake_core.store.eviction_order import EvictionOrder


@dataclass(slots=True)
class Tier:
    """How much a tier holds, and in which order it gives blocks up."""

    name: str
    capacity_blocks: int
    order: EvictionOrder


class BlockCache:
    """What is used moves to the first tier; what that has no room for moves down, and out at the end."""

    def __init__(self, tiers: Sequence[tuple[str, int]], new_policy: Callable[[], Eviction]) -> None:
        """`tiers`: names and capacities in blocks, the fastest first."""
        self.tiers = [Tier(name, capacity, EvictionOrder(new_policy())) for name, capacity in tiers]
        self._held: list[dict[bytes, int]] = [{} for _ in tiers]
        """By tier: block → its position in the prompt."""
        self._users: dict[bytes, int] = {}
        self._moved: dict[bytes, None] = {}
        """Blocks that were in another tier before."""

    def __contains__(self, key: bytes) -> bool:
        return any(key in held for held in self._held)

    def __len__(self) -> int:
        return sum(map(len, self._held))

    def sizes(self) -> list[int]:
        """Blocks by tier."""
        return list(map(len, self._held))

    def keys(self) -> list[bytes]:
        """All blocks."""
        return [key for held in self._held for key in held]

    def num_pinned(self) -> int:
        """Blocks in use."""
        return len(self._users)

    def tier_of(self, key: bytes) -> int:
        """Number of the tier that has a block; that of tiers where none has."""
        return next((number for number, held in enumerate(self._held) if key in held), len(self._held))

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Leading blocks that are here: the number of them by tier."""
        found = [0] * len(self.tiers)
        for key in keys:
            tier = self.tier_of(key)
            if tier == len(found):
                break
            found[tier] += 1
        return found

    def use(self, keys: Sequence[bytes], now: float) -> list[bytes]:
        """Blocks are read; from lower tiers they move up. What had to go for it altogether."""
        gone: list[bytes] = []
        first = self._held[0]
        for position in range(len(keys) - 1, -1, -1):  # a chain is evicted from its tail, so that was used first
            key = keys[position]
            if key in first:
                self.tiers[0].order.touched(pool_key(key))
            elif self._take_out(key):
                self._moved[key] = None
                gone += self._put(0, key, position, now)
        return gone

    def store(self, keys: Sequence[bytes], now: float) -> tuple[list[bytes], list[bytes]]:
        """Keeps blocks, at most as many as fit beside those in use. Those that were new, and those that had to go."""
        new: dict[bytes, None] = {}
        gone: dict[bytes, None] = {}
        """Of what was here before."""
        was_full = False
        for position, key in enumerate(keys):
            if key in self:
                continue
            if key in gone:
                self._moved[key] = None  # it had to go for one before it
            else:
                new[key] = None
            if lost := self._put(0, key, position, now):
                was_full = True
                gone.update((one, None) for one in lost if one not in new)
        if not was_full:
            return [*new], []
        return [key for key in new if key in self], [key for key in gone if key not in self]

    def take_moved(self) -> tuple[list[bytes], list[bytes]]:
        """Blocks that changed their tier since the last call, and are here: those in the first tier now, and those below."""
        if not self._moved:
            return [], []
        moved, self._moved = self._moved, {}
        first = self._held[0]
        return [key for key in moved if key in first], [key for key in moved if key not in first and key in self]

    def pin(self, keys: Sequence[bytes]) -> None:
        """Blocks are in use: they stay where they are until they are unpinned as often."""
        for key in keys:
            self._users[key] = self._users.get(key, 0) + 1

    def unpin(self, keys: Sequence[bytes]) -> None:
        """Blocks are not used any more by one of their users."""
        for key in keys:
            users = self._users.get(key, 0) - 1
            if users > 0:
                self._users[key] = users
            elif self._users.pop(key, None) is not None:
                for tier in self.tiers:
                    tier.order.released(pool_key(key))

    def shrink(self, capacity_blocks: int, now: float) -> list[bytes]:
        """The first tier has room for so many now. What had to go altogether."""
        self.tiers[0].capacity_blocks = capacity_blocks
        return self._make_room(0, now)

    def clear(self) -> list[bytes]:
        """Loses everything; what that was."""
        lost = self.keys()
        for number, held in enumerate(self._held):
            for key in held:
                self.tiers[number].order.removed(pool_key(key))
            held.clear()
        self._users.clear()
        self._moved.clear()
        return lost

    def _put(self, number: int, key: bytes, position: int, now: float) -> list[bytes]:
        self._held[number][key] = position
        self.tiers[number].order.added(pool_key(key), size_bytes=1, position=position)
        return self._make_room(number, now)

    def _make_room(self, number: int, now: float) -> list[bytes]:
        tier, held = self.tiers[number], self._held[number]
        gone: list[bytes] = []
        while len(held) > tier.capacity_blocks:
            name = tier.order.next_victim(self._stays_until, now)
            if name is None:
                break
            tier.order.removed(name)
            key = bytes.fromhex(name)
            position = held.pop(key)
            if number + 1 == len(self.tiers):
                gone.append(key)
                continue
            self._moved[key] = None
            gone += self._put(number + 1, key, position, now)
        return gone

    def _take_out(self, key: bytes) -> bool:
        for number, held in enumerate(self._held):
            if held.pop(key, None) is not None:
                self.tiers[number].order.removed(pool_key(key))
                return True
        return False

    def _stays_until(self, name: str) -> float:
        return math.inf if bytes.fromhex(name) in self._users else 0.0
