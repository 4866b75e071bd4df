"""Pins: what is never evicted, and what only where nothing else can go. Pure.

An object has one pin at most: `pin_until` is 0 without one, the time at which a soft pin ends, or infinity for a hard one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Final

from mooncake_core.errors import InvalidRequest
from mooncake_core.store.objects import PoolObject

HARD: Final = math.inf


def soft_until(soft_s: float, now: float) -> float:
    """When a soft pin of so many seconds ends; 0 for none.

    Raises:
        InvalidRequest: it would never end, or is no number.
    """
    if not 0 <= soft_s < HARD:
        raise InvalidRequest(f"expected a soft pin of 0 s or more that ends, got {soft_s} s", param="soft_pin_s")
    return now + soft_s if soft_s else 0.0


class Pins:
    """The soft pins, and when they end."""

    def __init__(self) -> None:
        self._soft: dict[int, PoolObject] = {}
        """Allocation → object."""
        self._ends: list[tuple[float, int]] = []
        """When to look whether a soft pin has ended: one that was made longer is looked at again then."""

    def set(self, entry: PoolObject, until: float) -> None:
        """Gives an object this pin instead of what it had."""
        watched = self._soft.pop(entry.allocation_id, None) is not None
        if 0 < until < HARD:
            self._soft[entry.allocation_id] = entry
            if not watched or until < entry.pin_until:
                heapq.heappush(self._ends, (until, entry.allocation_id))
        entry.pin_until = until

    def forget(self, entry: PoolObject) -> None:
        """The object is gone."""
        self._soft.pop(entry.allocation_id, None)

    def ended(self, now: float) -> Iterator[PoolObject]:
        """Objects whose soft pin has ended; the caller takes it off."""
        while self._ends and self._ends[0][0] <= now:
            _, allocation_id = heapq.heappop(self._ends)
            entry = self._soft.get(allocation_id)
            if entry is None:
                continue
            if entry.pin_until <= now:
                yield entry
            else:
                heapq.heappush(self._ends, (entry.pin_until, allocation_id))

    def soft(self, node: str) -> list[PoolObject]:
        """A node's softly pinned objects, the one whose pin ends first first."""
        return sorted(
            (entry for entry in self._soft.values() if node in entry.replicas), key=lambda entry: entry.pin_until
        )
