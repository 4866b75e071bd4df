"""How many requests a second a system serves within the objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from msgspec import Struct

SLOWEST: Final = 1 / 16
FASTEST: Final = 64.0
EXACT: Final = 1.03
"""The answer is within 3 %."""


class Capacity(Struct, frozen=True, kw_only=True):
    """The largest speeds of a trace at which a share of its requests meets the objectives."""

    name: str
    share: float
    tbt_s: list[float]
    """Limits of the time between tokens."""
    speeds: list[float]
    """For each of them; 0 where the slowest speed tried is too fast."""
    requests_per_s: list[float]
    """The same, as requests that arrive per second."""


def find_capacity(
    name: str, share: float, limits_s: Sequence[float], rate: float, serve: Callable[[float], Sequence[float]]
) -> Capacity:
    """Bisects; `serve` says for a speed which shares of requests meet the objectives, one for each limit. `rate` is of
    arrivals per second, at speed 1."""
    known: dict[float, Sequence[float]] = {}

    def is_served(index: int, speed: float) -> bool:
        if speed not in known:
            known[speed] = serve(speed)
        return known[speed][index] >= share

    speeds = [_bisect(partial(is_served, index)) for index in range(len(limits_s))]
    return Capacity(
        name=name,
        share=share,
        tbt_s=list(limits_s),
        speeds=speeds,
        requests_per_s=[speed * rate for speed in speeds],
    )


def _bisect(is_served: Callable[[float], bool]) -> float:
    """The largest speed that is served, on a grid that is the same for all, so that runs can be used again."""
    low = 1.0
    while not is_served(low):
        low /= 2
        if low < SLOWEST:
            return 0.0
    high = low * 2
    while high <= FASTEST and is_served(high):
        low, high = high, high * 2
    while high / low > EXACT:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if is_served(middle) else (low, middle)
    return low
