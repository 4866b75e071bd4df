"""Time is a parameter: whatever decides is given `now`, and drivers own a Clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in seconds."""

    def now(self) -> float: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


class VirtualClock:
    """A clock that moves only when told to, for tests and the simulator."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Moves the clock forward and returns the new time."""
        if seconds < 0:
            raise ValueError(f"time cannot go back by {seconds} s")
        self._now += seconds
        return self._now
