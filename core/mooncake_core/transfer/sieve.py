"""Which connection is closed to make room for another: SIEVE (Zhang et al., NSDI 2024). Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Sieve(Generic[K]):
    """A hand goes from the oldest to the newest and begins again. Who was not used since it came by goes; the others stay in
    their places."""

    def __init__(self) -> None:
        self._ahead: OrderedDict[K, bool] = OrderedDict()
        """What the hand comes to, the oldest first → whether it was used."""
        self._behind: OrderedDict[K, bool] = OrderedDict()
        """What it has spared in this round."""

    def __len__(self) -> int:
        return len(self._ahead) + len(self._behind)

    def add(self, key: K) -> None:
        """A new one."""
        self._ahead[key] = False

    def touch(self, key: K) -> None:
        """It is used."""
        for part in (self._ahead, self._behind):
            if key in part:
                part[key] = True

    def remove(self, key: K) -> None:
        """It has gone by itself."""
        self._ahead.pop(key, None)
        self._behind.pop(key, None)

    def evict(self, may_go: Callable[[K], bool]) -> K | None:
        """Removes one of those that may go; None where none may."""
        for _ in range(2 * len(self)):  # the second time nothing counts as used any more
            if not self._ahead:
                self._ahead, self._behind = self._behind, self._ahead
            key, used = self._ahead.popitem(last=False)
            if not used and may_go(key):
                return key
            self._behind[key] = False
        return None
