"""Gaps between a request's tokens, as runs whose gaps grow evenly: what batches make between two changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

SLOWEST_SHARE: Final = 0.1


class Run(NamedTuple):
    """`length` gaps of `first_s`, `first_s + growth_s`, `first_s + 2 * growth_s`, and so on."""

    length: int
    first_s: float
    growth_s: float

    def total_s(self, count: int) -> float:
        """Of its first `count` gaps."""
        return count * self.first_s + self.growth_s * (count * (count - 1) // 2)


class GapSummary(NamedTuple):
    """Of the gaps of one request, in seconds."""

    mean_s: float
    p90_s: float
    max_s: float
    slowest_s: float
    """Mean of the slowest tenth: the request's TBT (FAST'25, section 5.1)."""


def summarise(runs: Sequence[Run]) -> GapSummary | None:
    """None where there are no gaps: the request had one token."""
    count = sum(run.length for run in runs)
    if not count:
        return None
    gaps = np.concatenate([run.first_s + run.growth_s * np.arange(run.length) for run in runs])
    slowest = max(1, round(count * SLOWEST_SHARE))
    rank = max(0, -(-count * 9 // 10) - 1)  # nearest rank
    gaps.partition(sorted({rank, count - slowest}))
    return GapSummary(
        mean_s=float(gaps.mean()),
        p90_s=float(gaps[rank]),
        max_s=float(gaps[count - slowest :].max()),
        slowest_s=float(gaps[count - slowest :].mean()),
    )
