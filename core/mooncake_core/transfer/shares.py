"""Which of several ways to a peer takes the next bytes, so that each carries in proportion to what it delivers and to its weight.
Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

MEASURED_BYTES: Final = 1 << 20
"""What is shorter says more of latency than of what a way delivers."""
MEMORY: Final = 0.25
"""Weight of the latest measurement."""
SLOWEST: Final = 1 / 64
"""Of the fastest: nothing is given up for slower, or it would never be seen that it has recovered."""

K = TypeVar("K", bound=Hashable)


class Shares(Generic[K]):
    """Start-time fair queueing of bytes: a way that was not used for a while has no claim to what it missed."""

    def __init__(self) -> None:
        self._finishes: dict[K, float] = {}
        """When each is done with what it was given, in a time that runs as fast as the shares allow."""
        self._now = 0.0
        self._speeds: dict[K, float] = {}
        """What each was seen to deliver, of what it nominally does."""

    def next(self, nominal: Mapping[K, float], num_bytes: int, pending: Mapping[K, int] | None = None) -> K:
        """The way for so many bytes. `nominal`: of the candidates, the weight times what each should deliver, in any unit;
        `pending`: bytes under way."""
        shares = self.shares(nominal)
        starts = {key: max(self._now, self._finishes.get(key, 0.0)) for key in shares}
        waits = {key: self._now + (pending.get(key, 0) if pending else 0) / share for key, share in shares.items()}
        # What is slower than was seen has more under way than it was due: that must end first.
        chosen = min(shares, key=lambda key: (max(starts[key], waits[key]), -shares[key]))
        self._now = starts[chosen]
        self._finishes[chosen] = self._now + num_bytes / shares[chosen]
        return chosen

    def shares(self, nominal: Mapping[K, float]) -> dict[K, float]:
        """What each candidate is to carry, beside the others: the nominal, less where others were seen to do better."""
        seen = [self._speeds[key] for key in nominal if key in self._speeds]
        if not seen:
            return dict(nominal)
        best, usual = max(seen), sum(seen) / len(seen)
        return {key: share * max(SLOWEST, self._speeds.get(key, usual) / best) for key, share in nominal.items()}

    def delivered(self, key: K, nominal: float, num_bytes: int, seconds: float) -> None:
        """A way was busy for so long with so many bytes. `nominal`: as for `next`, but without its weight."""
        if num_bytes < MEASURED_BYTES or seconds <= 0:
            return
        speed = num_bytes / seconds / nominal
        self._speeds[key] = speed + (1 - MEMORY) * (self._speeds.get(key, speed) - speed)

    def forget(self, key: K) -> None:
        """It failed: what it delivered before says nothing."""
        self._speeds.pop(key, None)
