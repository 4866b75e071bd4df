"""Drives an object that decides (`handle(event, now) -> commands`, `next_deadline()`) on an asyncio loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

SHORTEST_WAIT_S: Final = 1e-3
"""A deadline in the past must not turn the loop into a busy one."""

Event = TypeVar("Event", contravariant=True)
Command = TypeVar("Command", covariant=True)
E_ = TypeVar("E_")
C_ = TypeVar("C_")


class Decider(Protocol[Event, Command]):
    """Decides and does nothing else."""

    def handle(self, event: Event, now: float) -> Sequence[Command]: ...

    def next_deadline(self) -> float | None: ...


class Drive(Generic[E_, C_]):
    """Feeds events to a decider, has its commands executed, and wakes it at its deadlines.

    Time is the loop's clock, which is the machine's monotonic one.
    """

    def __init__(self, decider: Decider[E_, C_], *, execute: Callable[[C_], None], tick: Callable[[], E_]) -> None:
        self._decider = decider
        self._execute = execute
        self._tick = tick
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        return self._loop.time()

    def feed(self, event: E_) -> None:
        """Lets the decider handle an event, and executes what it commands."""
        for command in self._decider.handle(event, self.now()):
            self._execute(command)
        self._arm()

    def close(self) -> None:
        """No more ticks."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        deadline = self._decider.next_deadline()
        if deadline is None:
            self.close()
            return
        timer = self._timer
        if timer is not None and timer.when() <= deadline:
            return  # wakes early enough; it then arms itself for the later deadline
        deadline = max(deadline, self.now() + SHORTEST_WAIT_S)
        if timer is None or timer.when() > deadline:
            self.close()
            self._timer = self._loop.call_at(deadline, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.feed(self._tick())
