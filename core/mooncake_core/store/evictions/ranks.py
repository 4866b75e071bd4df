"""Objects by rank. Pure."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Final, Generic, TypeVar

_SPARE_RANKS: Final = 64

Rank = TypeVar("Rank", int, tuple[int, int])


class Ranks(Generic[Rank]):
    """The lowest rank first; within a rank, the object that has been in it for longest."""

    def __init__(self) -> None:
        self._keys_of: dict[Rank, OrderedDict[str, None]] = {}
        self._heap: list[Rank] = []
        """Every rank of an object is in it; also some that have no object any more."""

    def add(self, key: str, rank: Rank) -> None:
        """Puts an object last in its rank."""
        keys = self._keys_of.get(rank)
        if keys is None:
            keys = self._keys_of[rank] = OrderedDict()
            heapq.heappush(self._heap, rank)
            self._tidy()
        keys[key] = None

    def discard(self, key: str, rank: Rank) -> None:
        """Takes an object out, if it is there."""
        keys = self._keys_of.get(rank)
        if keys is not None:
            keys.pop(key, None)
            if not keys:
                del self._keys_of[rank]

    def pop(self) -> str | None:
        """Takes the first object out."""
        while self._heap:
            rank = self._heap[0]
            keys = self._keys_of.get(rank)
            if keys is not None:
                key, _ = keys.popitem(last=False)
                if not keys:
                    del self._keys_of[rank]
                return key
            heapq.heappop(self._heap)
        return None

    def _tidy(self) -> None:
        """Ranks come and go as objects are read: those that nobody has must not pile up."""
        if len(self._heap) > 2 * len(self._keys_of) + _SPARE_RANKS:
            self._heap = list(self._keys_of)
            heapq.heapify(self._heap)
