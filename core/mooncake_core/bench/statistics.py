"""Numbers out of samples. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

SLOWEST_SHARE: Final = 0.1
RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95


class Quantiles(Struct, frozen=True, kw_only=True):
    """Of `count` samples, by nearest rank."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float


class Estimate(Struct, frozen=True, kw_only=True):
    """A median of `count` paired ratios, with its bootstrap interval at CONFIDENCE."""

    count: int
    median: float
    low: float
    high: float


def quantiles(samples: Sequence[float]) -> Quantiles | None:
    """None where there are no samples."""
    if not samples:
        return None
    ordered = sorted(samples)
    return Quantiles(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=_rank(ordered, 0.50),
        p90=_rank(ordered, 0.90),
        p99=_rank(ordered, 0.99),
    )


def request_tbt(gaps: Sequence[float]) -> float | None:
    """A request's time between tokens: mean of its slowest tenth of gaps (FAST'25, section 5.1)."""
    if not gaps:
        return None
    slowest = sorted(gaps, reverse=True)[: max(1, round(len(gaps) * SLOWEST_SHARE))]
    return sum(slowest) / len(slowest)


def median_ratio(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Estimate | None:
    """The median of first/second over pairs measured side by side, and how sure it is.

    Pairs whose second is 0 say nothing and are left out; None where none is left. The percentile bootstrap resamples
    whole pairs, since what disturbs a machine disturbs both halves of a pair.
    """
    ratios = [first / second for first, second in pairs if second]
    if not ratios:
        return None
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return Estimate(
        count=len(ratios),
        median=statistics.median(ratios),
        low=medians[round(tail * (RESAMPLES - 1))],
        high=medians[round((1 - tail) * (RESAMPLES - 1))],
    )


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * round(share * 100) // 100) - 1))]
