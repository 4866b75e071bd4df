"""The line before an instance's KV memory."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from mooncake_core.errors import NoSpace


@dataclass(order=True, slots=True)
class _Place:
    """Of one who waits."""

    priority: int
    number: int
    called: asyncio.Event = field(compare=False, default_factory=asyncio.Event)


class MemoryLine:
    """Whose turn it is: the lowest priority number first, as in the engine; of equal ones whoever came first. Only the first
    one may take blocks, so that a long prompt is not passed by short ones behind it."""

    def __init__(self, reserve: Callable[[int, int], list[int]]) -> None:
        """`reserve` is that of the engine loop."""
        self._reserve = reserve
        self._numbers = itertools.count()
        self._line: list[_Place] = []

    async def reserve(self, sequence_id: int, num_tokens: int, priority: int) -> list[int]:
        """Blocks for a sequence, once it is its turn and they are free; cancelling it leaves the line."""
        place = _Place(priority, next(self._numbers))
        bisect.insort(self._line, place)
        try:
            while True:
                place.called.clear()
                if self._line[0] is place:
                    with contextlib.suppress(NoSpace):
                        return self._reserve(sequence_id, num_tokens)
                await place.called.wait()
        finally:
            self._line.remove(place)
            self.freed()

    def freed(self) -> None:
        """Blocks have become free, or the line has moved up: the first one tries again."""
        if self._line:
            self._line[0].called.set()
