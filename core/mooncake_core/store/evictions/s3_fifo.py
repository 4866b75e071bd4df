"""S3-FIFO (Yang et al., SOSP 2023): three first-in-first-out queues. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from mooncake_core.store.eviction import Eviction

SMALL_SHARE: Final = 0.1
"""Of the objects: so many are on probation."""
PROVEN_READS: Final = 2
"""An object that was read so often while on probation has passed it."""
MOST_READS: Final = 3
"""More reads are not counted: an object is spared so often at most before it must be read again."""


class S3FIFO(Eviction):
    """New objects are on probation in a small queue, and most leave from there: a scan does not displace what is read
    again and again. Whatever comes back soon after it was evicted goes to the main queue at once."""

    def __init__(self) -> None:
        self._small: OrderedDict[str, int] = OrderedDict()
        """Key → reads."""
        self._main: OrderedDict[str, int] = OrderedDict()
        self._ghosts: OrderedDict[str, None] = OrderedDict()
        """Keys of what was evicted from the small queue."""
        self._named_from_small: set[str] = set()

    def added(self, key: str, *, size_bytes: int, position: int) -> None:
        known = key in self._ghosts
        if known:
            del self._ghosts[key]
        (self._main if known else self._small)[key] = 0

    def touched(self, key: str) -> None:
        queue = self._small if key in self._small else self._main
        reads = queue.get(key)
        if reads is None:  # it was named
            self._named_from_small.discard(key)
            reads = 0
        queue[key] = min(reads + 1, MOST_READS)

    def removed(self, key: str) -> None:
        self._small.pop(key, None)
        self._main.pop(key, None)
        if key in self._named_from_small:
            self._named_from_small.remove(key)
            self._remember(key)

    def name_next(self) -> str | None:
        if len(self._small) >= SMALL_SHARE * (len(self._small) + len(self._main)):
            key = self._from_small()
            if key is not None:
                self._named_from_small.add(key)
                return key
        return self._from_main()

    def _from_small(self) -> str | None:
        """Who has passed moves on; None where all have."""
        while self._small:
            key, reads = self._small.popitem(last=False)
            if reads < PROVEN_READS:
                return key
            self._main[key] = 0
        return None

    def _from_main(self) -> str | None:
        while self._main:
            key, reads = self._main.popitem(last=False)
            if not reads:
                return key
            self._main[key] = reads - 1
        return None

    def _remember(self, key: str) -> None:
        self._ghosts[key] = None
        if len(self._ghosts) > len(self._small) + len(self._main):
            self._ghosts.popitem(last=False)
