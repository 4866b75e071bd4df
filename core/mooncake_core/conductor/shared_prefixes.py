"""Which beginnings of prompts so many requests share that they belong on more nodes than have them.

The paper lacks this, and users of routers that follow prefixes report what happens then: with one system prompt for all, the
instance that computed it first wins whenever it is free, and others starve. A prefix that a share s of requests has is wanted on
s x n of n instances; until it is there, nobody gets credit for having it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

WINDOW: Final = 500
"""Requests by which shares are known."""
ENOUGH: Final = 16
"""With fewer, nothing is known."""
FEWEST: Final = 2.0
"""A prefix that is wanted on fewer instances than this may lie on one."""


class SharedPrefixes:
    """Counts prefixes of the latest requests, at lengths that double: a longer one from the time that the shorter is known."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        self._latest: deque[list[bytes]] = deque()

    def observe(self, keys: Sequence[bytes]) -> None:
        """A request with such blocks has come."""
        counts = self._counts
        counted: list[bytes] = []
        length = 1
        while length <= len(keys):
            key = keys[length - 1]
            counted.append(key)
            before = counts.get(key, 0)
            counts[key] = before + 1
            if not before:
                break  # longer ones are as new, and most prompts end like no other
            length *= 2
        self._latest.append(counted)
        if len(self._latest) > WINDOW:
            for key in self._latest.popleft():
                if left := counts[key] - 1:
                    counts[key] = left
                else:
                    del counts[key]

    def too_rare(self, num_instances: int, holders: Callable[[bytes], int]) -> int:
        """Leading blocks of the latest request that too few instances have, for the share of requests that begin so."""
        known = len(self._latest)
        if known < ENOUGH:
            return 0
        found, length = 0, 1
        for key in self._latest[-1]:
            wanted = self._counts[key] / known * num_instances
            if wanted < FEWEST:
                break  # longer ones are rarer
            if holders(key) < int(wanted):
                found = length
            length *= 2
        return found
