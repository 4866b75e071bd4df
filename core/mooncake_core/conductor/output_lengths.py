"""How long answers are: quantiles by tenant, learned from those that have ended."""

from __future__ import annotations

import math
from collections import deque
from itertools import accumulate
from typing import Final

ENOUGH: Final = 50
"""A tenant with fewer answers is judged by those of all."""
KEPT: Final = 2000
"""Older answers count no more."""
MOST_TENANTS: Final = 1000
_BINS_PER_DOUBLING: Final = 8
_NUM_BINS: Final = 24 * _BINS_PER_DOUBLING


class _Histogram:
    """Lengths in bins of a logarithmic scale, some 9 % wide, of the latest answers."""

    def __init__(self) -> None:
        self._counts = [0] * (_NUM_BINS + 1)
        self._latest: deque[int] = deque()
        self._longer: list[int] | None = None
        """By bin: answers in it, or longer."""

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, tokens: int) -> None:
        number = _bin(tokens)
        self._counts[number] += 1
        self._latest.append(number)
        if len(self._latest) > KEPT:
            self._counts[self._latest.popleft()] -= 1
        self._longer = None

    def num_longer(self, tokens: int) -> int:
        """Answers that have more tokens, or as many, to the width of a bin."""
        if self._longer is None:
            self._longer = list(accumulate(reversed(self._counts)))[::-1]
        return self._longer[_bin(tokens)]


class OutputLengths:
    """Of each tenant, and of all."""

    def __init__(self) -> None:
        self._all = _Histogram()
        self._tenants: dict[str, _Histogram] = {}

    def observe(self, tenant: str, tokens: int) -> None:
        """An answer has ended with so many tokens."""
        self._all.add(tokens)
        known = self._tenants.get(tenant)
        if known is None:
            if len(self._tenants) == MOST_TENANTS:
                del self._tenants[next(iter(self._tenants))]
            known = self._tenants[tenant] = _Histogram()
        known.add(tokens)

    def go_on(self, tenant: str, done: int, until: int) -> float:
        """The probability that an answer which has `done` tokens will have more than `until`. 1 as long as little is known,
        and for answers that are longer than all that were seen."""
        lengths = self._lengths(tenant)
        longer = lengths.num_longer(done + 1)
        return lengths.num_longer(until + 1) / longer if longer and len(lengths) >= ENOUGH else 1.0

    def _lengths(self, tenant: str) -> _Histogram:
        known = self._tenants.get(tenant)
        return known if known is not None and len(known) >= ENOUGH else self._all


def _bin(tokens: int) -> int:
    return min(_NUM_BINS, int(math.log2(max(1, tokens)) * _BINS_PER_DOUBLING))
