"""Looking for what is awaited for a moment before sleeping: who sleeps has to be woken, which takes longer than a short answer.

A processor that looks has nothing else to do, or gives way between two looks. See docs/decisions/0064.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from mooncake_core.units import format_duration

MOST_S: Final = 0.01
"""Waking up takes far less: who asks for more means another unit, and would have cores look for nothing."""


def checked(most_s: float) -> float:
    """A time to look for, as somebody gave it.

    Raises:
        ValueError: it is too long; the message says what is accepted.
    """
    if most_s > MOST_S:
        found = format_duration(most_s)
        raise ValueError(f"expected a duration of at most {format_duration(MOST_S)}, as 100us, got {found}")
    return most_s


def look(poll: Callable[[int], object], most_s: float) -> bool:
    """Whether `poll(0)` finds something before so long has passed."""
    until = time.perf_counter() + most_s
    while not poll(0):
        if time.perf_counter() >= until:
            return False
        os.sched_yield()
    return True
