"""The order in which one node's objects go: as its policy names them, and as soon as they may. Pure.

What may not go when it is named is held: under a lease for a time, in the middle of a chain until the chain ends there. It
is not looked at again before; so what a round of eviction costs does not depend on how much there is that must stay.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from mooncake_core.store.eviction import Eviction


class EvictionOrder:
    """A policy, and what it has named and could not go yet."""

    def __init__(self, policy: Eviction) -> None:
        self._policy = policy
        self._held: dict[str, float] = {}
        """Named, and may not go → until when; infinity: until it is released."""
        self._held_until: list[tuple[float, str]] = []
        self._due: dict[str, None] = {}
        """Named earlier, and nothing has held it when it was last looked at."""

    def added(self, key: str, *, size_bytes: int, position: int) -> None:
        """The node has a new object."""
        self._policy.added(key, size_bytes=size_bytes, position=position)

    def touched(self, key: str) -> None:
        """An object of the node was read."""
        self._forget(key)
        self._policy.touched(key)

    def removed(self, key: str) -> None:
        """An object of the node is gone."""
        self._forget(key)
        self._policy.removed(key)

    def released(self, key: str) -> None:
        """What held an object without end does so no more; it may not have been held at all."""
        if self._held.pop(key, None) is not None:
            self._due[key] = None

    def next_victim(self, held_until: Callable[[str], float], now: float) -> str | None:
        """The object that goes now; the caller drops it before it asks again. None: nothing may go.

        `held_until` says of an object until when it must stay. Infinity calls for `released` in the end.
        """
        self._lapse(now)
        while (key := self._next_named()) is not None:
            until = held_until(key)
            if until <= now:
                return key
            self._held[key] = until
            if until != math.inf:
                heapq.heappush(self._held_until, (until, key))
        return None

    def forgotten(self, held_until: Callable[[str], float]) -> list[str]:
        """Objects that wait for a release that has been missed: there should be none."""
        waiting = (key for key, until in self._held.items() if until == math.inf)
        return [key for key in waiting if held_until(key) != math.inf]

    def _next_named(self) -> str | None:
        """The latest that has come due goes first: a chain goes as a whole, from its tail."""
        return self._due.popitem()[0] if self._due else self._policy.name_next()

    def _lapse(self, now: float) -> None:
        while self._held_until and self._held_until[0][0] <= now:
            until, key = heapq.heappop(self._held_until)
            if self._held.get(key) == until:
                self.released(key)

    def _forget(self, key: str) -> None:
        self._held.pop(key, None)
        self._due.pop(key, None)
