"""Simulated time, and what is to happen in it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any


class Timeline:
    """Calls actions in the order of their times; those of one moment in the order they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the simulation began; never goes back."""
        self._waiting: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Has an action called at a time; one that has passed (by a rounding error) is now. It cannot be taken back: an
        action that may be out of date looks whether it is."""
        heapq.heappush(self._waiting, (max(time, self.now), self._count, action, arguments))
        self._count += 1

    def run(self, until: float = math.inf) -> None:
        """Goes on until nothing waits, or to the end of a time."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(waiting)
            action(*arguments)
