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
        """Payloads until the next comparison may begin."""
        self._first: tuple[int, float] | None = None
        """Length and rate of the last payload, if the next one may be compared with it."""

    def in_parts(self, num_bytes: int) -> bool:
        """Whether the next payload, of so many bytes, is to be sent in parts."""
        is_second = self._first is not None and self._first[0] == num_bytes
        return (self._lead > 0) is not is_second

    def took(self, num_bytes: int, seconds: float) -> None:
        """Of the payload that was sent as `in_parts` said."""
        if num_bytes < FEWEST_BYTES or seconds <= 0:
            return
        rate = num_bytes / seconds
        first, self._first = self._first, None
        if first is not None and first[0] == num_bytes:
            self._compare(rate / first[1] if self._lead <= 0 else first[1] / rate)
            return
        self._pause -= 1
        if self._pause < 0:
            self._first = num_bytes, rate

    def _compare(self, of_whole: float) -> None:
        """Parts were so many times as fast as a whole."""
        self._num_compared += 1
        self._lead += (math.log(of_whole) - self._lead) / min(self._num_compared, MEMORY)
        self._pause = PAUSE if self._num_compared >= FIRST_COMPARISONS else 0
