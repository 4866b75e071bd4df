"""Numbers out of samples. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

SLOWEST_SHARE = 0.1


class Quantiles(Struct, frozen=True, kw_only=True):
    """Of `count` samples, by nearest rank."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float


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


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * round(share * 100) // 100) - 1))]
