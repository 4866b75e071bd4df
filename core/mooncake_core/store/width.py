"""How many threads move a large batch at the same time: as many as have moved most lately. Pure.

Two connections fill a link, or a copy two cores, where one does not; but where other work has the cores, a second thread is in
the way. Nobody can tell beforehand which of it is so; it changes, and can be measured.
"""

from __future__ import annotations

from typing import Final, NamedTuple

WIDTHS: Final = (1, 2)
FIRST_MOVES: Final = 3
"""Of each width, before one is preferred."""
TRIED_EVERY: Final = 32
"""Moves: so often the one that is not preferred has its turn."""
WEIGHT: Final = 0.25
"""Of the latest move in the average."""


class Way(NamedTuple):
    """What is measured together: moves in one direction, by one transport, of about the same size."""

    kind: int
    transport: str
    size_class: int
    """Bits of the number of bytes."""


class _Record:
    """Of one way: bytes per second by width, and how many moves there were."""

    __slots__ = ("moves", "rates")

    def __init__(self) -> None:
        self.moves = 0
        self.rates: dict[int, float] = {}


class Widths:
    """Of one client. Threads may use it at once: what is lost then is one move's measure."""

    def __init__(self) -> None:
        self._records: dict[Way, _Record] = {}

    def choose(self, way: Way) -> int:
        """For the next move."""
        record = self._records.get(way)
        if record is None:
            return WIDTHS[0]
        if record.moves < FIRST_MOVES * len(WIDTHS):
            return WIDTHS[record.moves % len(WIDTHS)]
        rates = record.rates
        best = max(WIDTHS, key=lambda width: rates.get(width, 0.0))
        if record.moves % TRIED_EVERY == 0:
            return next(width for width in WIDTHS if width != best)
        return best

    def note(self, way: Way, width: int, num_bytes: int, duration_s: float) -> None:
        """A move has ended."""
        record = self._records.setdefault(way, _Record())
        record.moves += 1
        rate = num_bytes / max(duration_s, 1e-9)
        before = record.rates.get(width, rate)
        record.rates[width] = before + WEIGHT * (rate - before)
