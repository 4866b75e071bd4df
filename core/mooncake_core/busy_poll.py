"""Looking for what is awaited for a moment before sleeping: who sleeps has to be woken, which takes longer than a short answer.

A processor that looks has nothing else to do, or gives way between two looks. See docs/decisions/0064.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def look(poll: Callable[[int], object], most_s: float) -> bool:
    """Whether `poll(0)` finds something before so long has passed."""
    until = time.perf_counter() + most_s
    while not poll(0):
        if time.perf_counter() >= until:
            return False
        os.sched_yield()
    return True
