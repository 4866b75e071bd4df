"""Which beginnings of prompts so many requests share that they belong on more nodes than have them.

The paper lacks this, and users of routers that follow prefixes report what happens then: with one system prompt for all, the
instance that computed it first wins whenever it is free, and others starve. A prefix that a share s of requests has is wanted on
s x n of n instances; until it is there, nobody gets credit for having it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

WINDOW: Final = 500
"""Requests by which shares are known."""
ENOUGH: Final = 16
"""With fewer, nothing is known."""
FEWEST: Final = 2.0
"""A prefix that is wanted on fewer instances than this may lie on one."""


class SharedPrefixes:
    """Counts prefixes of the latest requests, at lengths that double."""

    def __init__(self) -> None:
        self._counts: Counter[bytes] = Counter()
        self._latest: deque[list[bytes]] = deque()

    def observe(self, keys: Sequence[bytes]) -> None:
        """A request with such blocks has come."""
        probes = [keys[length - 1] for length in _lengths(len(keys))]
        self._latest.append(probes)
        self._counts.update(probes)
        if len(self._latest) > WINDOW:
            for key in self._latest.popleft():
                self._counts[key] -= 1
                if not self._counts[key]:
                    del self._counts[key]

    def too_rare(self, keys: Sequence[bytes], num_instances: int, holders: Callable[[bytes], int]) -> int:
        """Leading blocks that too few instances have, for the share of requests that begin so."""
        known = len(self._latest)
        if known < ENOUGH:
            return 0
        found = 0
        for length in _lengths(len(keys)):
            key = keys[length - 1]
            wanted = self._counts[key] / known * num_instances
            if wanted < FEWEST:
                break  # longer ones are rarer
            if holders(key) < int(wanted):
                found = length
        return found


def _lengths(number: int) -> Iterator[int]:
    length = 1
    while length <= number:
        yield length
        length *= 2
