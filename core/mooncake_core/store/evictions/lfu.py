"""Least frequently used. Pure."""

from __future__ import annotations

from mooncake_core.store.eviction import Eviction
from mooncake_core.store.evictions.ranks import Ranks


class LFU(Eviction):
    """The least often read first; of those, the one that was put or read least recently. Counts do not age."""

    def __init__(self) -> None:
        self._reads: dict[str, int] = {}
        self._ranks: Ranks[int] = Ranks()

    def added(self, key: str, *, size_bytes: int, position: int) -> None:
        self._reads[key] = 0
        self._ranks.add(key, 0)

    def touched(self, key: str) -> None:
        reads = self._reads[key]
        self._ranks.discard(key, reads)
        self._reads[key] = reads + 1
        self._ranks.add(key, reads + 1)

    def removed(self, key: str) -> None:
        self._ranks.discard(key, self._reads.pop(key))

    def name_next(self) -> str | None:
        return self._ranks.pop()
