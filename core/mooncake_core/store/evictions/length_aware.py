"""The length-aware policy of the Mooncake report (arXiv 2407.00079): as LFU, but late blocks of prompts first. Pure."""

from __future__ import annotations

from mooncake_core.store.eviction import Eviction
from mooncake_core.store.evictions.ranks import Ranks


class LengthAware(Eviction):
    """The least often read first; of those, the one with most blocks before it: fewer prompts have it in common."""

    def __init__(self) -> None:
        self._rank_of: dict[str, tuple[int, int]] = {}
        """Key → (reads, -position)."""
        self._ranks: Ranks[tuple[int, int]] = Ranks()

    def added(self, key: str, *, size_bytes: int, position: int) -> None:
        self._rank(key, (0, -position))

    def touched(self, key: str) -> None:
        reads, later = self._rank_of[key]
        self._ranks.discard(key, (reads, later))
        self._rank(key, (reads + 1, later))

    def removed(self, key: str) -> None:
        self._ranks.discard(key, self._rank_of.pop(key))

    def name_next(self) -> str | None:
        return self._ranks.pop()

    def _rank(self, key: str, rank: tuple[int, int]) -> None:
        self._rank_of[key] = rank
        self._ranks.add(key, rank)
