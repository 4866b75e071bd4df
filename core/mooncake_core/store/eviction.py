"""Which objects a node gives up first. Pure; a policy is one class (entry point `mooncake.evictions`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator


class Eviction(ABC):
    """Ranks the objects of one node. The pool skips those it may not take: leased ones, and blocks whose chain goes on."""

    @abstractmethod
    def added(self, key: str) -> None:
        """The node has a new object."""

    @abstractmethod
    def touched(self, key: str) -> None:
        """An object was read."""

    @abstractmethod
    def removed(self, key: str) -> None:
        """An object is gone."""

    @abstractmethod
    def candidates(self) -> Iterator[str]:
        """Objects, the one to go first first. The pool may remove the current one and earlier ones while it iterates."""


class LRU(Eviction):
    """The least recently used first. Of objects touched together, the pool names the tail of a chain first."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()

    def added(self, key: str) -> None:
        self._order[key] = None

    def touched(self, key: str) -> None:
        if key in self._order:
            self._order.move_to_end(key)

    def removed(self, key: str) -> None:
        self._order.pop(key, None)

    def candidates(self) -> Iterator[str]:
        return iter(list(self._order))
