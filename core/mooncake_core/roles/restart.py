"""When a process that died is started again: exponential back-off, forgotten after a while of health. Pure."""

from __future__ import annotations

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 10.0


class RestartPolicy:
    """Decides the delay before the next start of one process."""

    def __init__(self) -> None:
        self._failures = 0

    def delay_after(self, lifetime_s: float) -> float:
        """Seconds to wait after a process has died at the age of `lifetime_s`."""
        self._failures = 0 if lifetime_s >= HEALTHY_AFTER_S else self._failures
        delay = min(FIRST_DELAY_S * float(2**self._failures), LONGEST_DELAY_S)
        self._failures += 1
        return delay
