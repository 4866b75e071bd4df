"""Objects on their way up to DRAM, and the gets that wait for them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mooncake_core.store.objects import PoolObject
from mooncake_core.wire.messages.pool import Get


@dataclass(slots=True)
class _Wanted:
    entry: PoolObject
    until: float
    """It is given up when it has no place by then."""
    node: str = ""
    """Where it has a place; empty while it waits for one."""
    tokens: list[int] = field(default_factory=list)
    """Gets that wait for it."""


@dataclass(slots=True)
class _Held:
    question: Get
    awaited: set[int]
    """Allocation ids."""
    since: float


class Promotions:
    """By allocation id. A get waits until each object has come, or will not, and no longer than `timeout_s`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._wanted: dict[int, _Wanted] = {}
        self._unplaced: dict[int, _Wanted] = {}
        self._held: dict[int, _Held] = {}
        self._until: deque[tuple[float, int]] = deque()
        """(end, token) of what is held, the first to end first."""
        self._ready: list[int] = []

    @property
    def is_waited_for(self) -> bool:
        return bool(self._held)

    def want(self, entry: PoolObject, now: float) -> None:
        """It is to come; once more, if it was about to be given up."""
        number = entry.allocation_id
        wanted = self._wanted.get(number)
        if wanted is None:
            wanted = self._wanted[number] = self._unplaced[number] = _Wanted(entry, 0.0)
        wanted.until = now + self._timeout_s

    def hold(self, token: int, question: Get, awaited: Sequence[PoolObject], now: float) -> None:
        """A get waits for objects that are wanted."""
        numbers = {entry.allocation_id for entry in awaited}
        for number in numbers:
            self._wanted[number].tokens.append(token)
        self._held[token] = _Held(question, numbers, now)
        self._until.append((now + self._timeout_s, token))

    def waiting(self, now: float) -> Iterator[PoolObject]:
        """What waits for a place. What has waited too long, or needs none any more, is given up."""
        for number, wanted in list(self._unplaced.items()):
            if wanted.until <= now or wanted.entry.replicas or not wanted.entry.tiered:
                self.ended(number)
            else:
                yield wanted.entry

    def placed(self, allocation_id: int, node: str) -> None:
        """It has a place, and is asked for."""
        self._unplaced.pop(allocation_id).node = node

    def failed(self, allocation_id: int) -> None:
        """It did not come from where it had a place: another node may have it."""
        wanted = self._wanted.get(allocation_id)
        if wanted is not None:
            wanted.node = ""
            self._unplaced[allocation_id] = wanted

    def node_left(self, node: str) -> None:
        for number, wanted in self._wanted.items():
            if wanted.node == node:
                self.failed(number)

    def ended(self, allocation_id: int) -> None:
        """It is there, or will not be."""
        self._unplaced.pop(allocation_id, None)
        wanted = self._wanted.pop(allocation_id, None)
        for token in wanted.tokens if wanted else ():
            held = self._held.get(token)
            if held is not None:
                held.awaited.discard(allocation_id)
                if not held.awaited:
                    self._ready.append(token)

    def answerable(self, now: float) -> list[tuple[int, Get, float]]:
        """(token, question, how long it has waited) of the gets that have waited long enough."""
        while self._until and self._until[0][0] <= now:
            self._ready.append(self._until.popleft()[1])
        ready, self._ready = self._ready, []
        found = [(token, held) for token in ready if (held := self._held.pop(token, None)) is not None]
        return [(token, held.question, now - held.since) for token, held in found]

    def next_deadline(self) -> float | None:
        """When the first get has waited long enough."""
        while self._until and self._until[0][1] not in self._held:
            self._until.popleft()
        return self._until[0][0] if self._until else None
