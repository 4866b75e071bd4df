"""What a peer's clock says, so that it can hold a transfer to its deadline however late the request arrives."""

from __future__ import annotations

import time
from typing import Final

DRIFT: Final = 1e-4
"""Seconds that two clocks may part in a second. More than quartz does; less would trust an old reading too long."""


class PeerClock:
    """Estimates the peer's time.monotonic(), and never ahead of it: deadlines are put too early by the latency of the
    fastest message heard, never too late."""

    def __init__(self) -> None:
        self._heard: tuple[float, float] | None = None
        """(when, how far the peer's clock is ahead at least). One tuple: threads see both or neither."""

    def hear(self, peer_s: float) -> None:
        """A message said what the peer's clock showed when it was sent."""
        now = time.monotonic()
        self._heard = now, max(peer_s - now, self._ahead_s(now))

    def at_peer(self, deadline_s: float) -> float:
        """What the peer's clock will show at a time of ours, or a little less."""
        return deadline_s + self._ahead_s(time.monotonic())

    def _ahead_s(self, now: float) -> float:
        if self._heard is None:
            return float("-inf")
        heard_s, ahead_s = self._heard
        return ahead_s - DRIFT * (now - heard_s)
