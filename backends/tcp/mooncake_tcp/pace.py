"""Which of two ways to send is the quicker one, found out while sending. Pure."""

from __future__ import annotations

import math
from typing import Final

FEWEST_BYTES: Final = 1 << 20
"""Of what is compared: shorter payloads lie in the sockets' buffers for the most part when they are sent."""
FIRST_COMPARISONS: Final = 8
"""One after the other; each later one after a pause."""
PAUSE: Final = 30
"""Payloads that go the quicker way between two comparisons."""
MEMORY: Final = 16
"""So many comparisons count, the latest the most."""


class Pace:
    """Of one connection. Two payloads of one length that follow each other, one sent in parts and one whole, are a comparison:
    how fast the machine is at the moment is the same for both."""

    def __init__(self) -> None:
        self._lead = 0.0
        """Of parts: the logarithm of how much faster they are."""
        self._num_compared = 0
        self._pause = 0
        self._first: tuple[int, float] | None = None
        """Length and rate of the first payload of a comparison that has begun."""

    @property
    def in_parts(self) -> bool:
        """Whether the next payload is to be sent in parts."""
        return (self._lead > 0) is (self._first is None)

    def took(self, num_bytes: int, seconds: float) -> None:
        """Of the payload that was sent as `in_parts` said."""
        if num_bytes < FEWEST_BYTES or seconds <= 0:
            return
        rate = num_bytes / seconds
        if self._first is None:
            self._pause -= 1
            if self._pause < 0:
                self._first = num_bytes, rate
            return
        length, before = self._first
        self._first = None
        if length == num_bytes:
            self._compare(rate / before if self._lead <= 0 else before / rate)
        self._pause = PAUSE if self._num_compared >= FIRST_COMPARISONS else 0  # also where the lengths differ

    def _compare(self, of_whole: float) -> None:
        """Parts were so many times as fast as a whole."""
        self._num_compared += 1
        self._lead += (math.log(of_whole) - self._lead) / min(self._num_compared, MEMORY)
