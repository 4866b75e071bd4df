"""How many work requests may be under way on one device: when a queue pair fails each of them is told of, whether it was
signalled or not, and what does not fit into the queue of completions is lost, with all queue pairs."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

K = TypeVar("K")


class Room(Generic[K]):
    """Shared by the queue pairs of a device: those that have something under way wait for those that have nothing. Any
    thread."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._waiting: dict[K, None] = {}
        self._lock = threading.Lock()

    def take(self, taker: K, *, has_some: bool) -> bool:
        """For one request more; whether there is room. Who has nothing under way and is refused is then among those that
        `waiting` names: no completion of its own would ever make it ask again."""
        with self._lock:
            is_there = self._left > 0 and not (has_some and self._waiting)
            if is_there:
                self._left -= 1
            elif not has_some:
                self._waiting[taker] = None
            return is_there

    def give_back(self, count: int) -> None:
        """So many are told of."""
        with self._lock:
            self._left += count

    def waiting(self) -> list[K]:
        """Those that were refused, the first one first; they are to ask again now."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            return [*waiting]
