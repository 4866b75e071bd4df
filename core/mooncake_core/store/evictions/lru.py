"""Least recently used. Pure."""

from __future__ import annotations

from collections import OrderedDict

from mooncake_core.store.eviction import Eviction


class LRU(Eviction):
    """The least recently used first. Of objects read together, the pool says that the tail of a chain was read first."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()

    def added(self, key: str, *, size_bytes: int, position: int) -> None:
        self._order[key] = None

    def touched(self, key: str) -> None:
        self._order[key] = None
        self._order.move_to_end(key)

    def removed(self, key: str) -> None:
        self._order.pop(key, None)

    def name_next(self) -> str | None:
        return self._order.popitem(last=False)[0] if self._order else None
