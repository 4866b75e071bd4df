"""How long an event loop was away: from when it had something to do until it could look for more.

What runs on the loop without giving it back delays everybody else: these are the pauses that others feel. They are
measured exactly, at two looks at the clock per turn of the loop, and without waking it.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any, Final

WINDOW_S: Final = 60.0


class LoopPauses:
    """The longest pause of all, and of the last one to two minutes."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._window_began = 0.0
        self._longest_s = 0.0
        self._recent_s = 0.0
        """Of this window."""
        self._earlier_s = 0.0
        """Of the window before."""
        self._starting = False

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """A loop whose pauses are measured; for asyncio.Runner(loop_factory=...)."""
        return asyncio.SelectorEventLoop(_TimedSelector(self))

    def begin(self) -> None:
        """Forgets what was until now, the turn that is under way included: a process that starts delays nobody yet."""
        self._longest_s = self._recent_s = self._earlier_s = 0.0
        self._starting = True

    def note(self, began: float, ended: float) -> None:
        """One turn of the loop, by the monotonic clock."""
        if self._starting:
            self._starting = False
            return
        if ended - self._window_began >= self._window_s:
            is_next = ended - self._window_began < 2 * self._window_s
            self._earlier_s, self._recent_s = (self._recent_s if is_next else 0.0), 0.0
            self._window_began = ended
        if ended - began > self._recent_s:
            self._recent_s = ended - began
            self._longest_s = max(self._longest_s, self._recent_s)

    @property
    def longest_s(self) -> float:
        """Since the beginning."""
        return self._longest_s

    @property
    def recent_s(self) -> float:
        """Of the last one to two minutes in which the loop ran."""
        return max(self._recent_s, self._earlier_s)


class _TimedSelector(selectors.DefaultSelector):
    """Tells how long it was not asked."""

    def __init__(self, pauses: LoopPauses) -> None:
        super().__init__()
        self._pauses = pauses
        self._returned = 0.0
        """When; 0 before the first time."""

    def select(self, timeout: float | None = None) -> Any:
        if self._returned:
            self._pauses.note(self._returned, time.monotonic())
        found = super().select(timeout)
        self._returned = time.monotonic()
        return found
