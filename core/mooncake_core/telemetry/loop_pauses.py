"""How long an event loop was away: from when it had something to do until it could look for more.

What runs on the loop without giving it back delays everybody else: these are the pauses that others feel. They are
measured exactly, at two looks at the clock per turn of the loop, and without waking it.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any, Final

from mooncake_core import busy_poll

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

    def new_loop(self, busy_poll_s: float = 0.0) -> asyncio.AbstractEventLoop:
        """A loop whose pauses are measured; for asyncio.Runner(loop_factory=...). When something has happened it looks for so
        long for what happens next before it sleeps."""
        return asyncio.SelectorEventLoop(_TimedSelector(self, busy_poll_s))

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

    def __init__(self, pauses: LoopPauses, busy_poll_s: float) -> None:
        super().__init__()
        self._busy_poll_s = busy_poll_s
        self._is_busy = False
        """Something has happened since it last slept."""
        self._pauses = pauses
        self._returned = 0.0
        """When; 0 before the first time."""

    def select(self, timeout: float | None = None) -> Any:
        if self._returned:
            self._pauses.note(self._returned, time.monotonic())
        found = self._look(timeout) if self._is_busy else super().select(timeout)
        self._is_busy = self._busy_poll_s > 0 and (bool(found) or timeout == 0)
        self._returned = time.monotonic()
        return found

    def _look(self, timeout: float | None) -> Any:
        """As `select`, but sleeps only when there was nothing for a while."""
        found: Any = []

        def poll(_: int) -> bool:
            found[:] = super(_TimedSelector, self).select(0)
            return bool(found)

        most_s = self._busy_poll_s if timeout is None else min(self._busy_poll_s, timeout)
        if busy_poll.look(poll, most_s) or (timeout is not None and timeout <= most_s):
            return found
        return super().select(None if timeout is None else timeout - most_s)
