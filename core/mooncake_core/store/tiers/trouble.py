"""A disk that fails costs a tier's writes for a while, and says why."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Final

HINTS: Final = {
    errno.ENOSPC: "free space on that disk, or lower the tier's capacity",
    errno.EDQUOT: "raise the quota, or lower the tier's capacity",
    errno.EFBIG: "raise the limit on file sizes, or lower the tier's capacity",
    errno.EROFS: "mount it writable",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
}
OTHER_HINT: Final = "look for errors of that disk or service (dmesg, its own log)"

_log = logging.getLogger(__name__)


class Trouble:
    """Whether a tier takes writes: after a failed one not before `retry_s` have passed."""

    def __init__(self, where: str, *, retry_s: float, now: Callable[[], float]) -> None:
        self._where = where
        self._retry_s = retry_s
        self._now = now
        self._until = 0.0
        self.message = ""
        """Why not, and what to do; empty after a write that went well."""

    def may_write(self) -> bool:
        return not self.message or self._now() >= self._until

    def failed(self, error: Exception) -> None:
        """A write has failed."""
        self.refuse(f"a write to {self._where} failed: {error}; {_hint(error)}")

    def refuse(self, reason: str) -> None:
        """No writes for a while; logs a reason once."""
        self._until = self._now() + self._retry_s
        if not self.message:
            _log.error("%s. It takes no objects for now, and is still read from", reason)
        self.message = reason

    def ended(self) -> None:
        """A write went well."""
        if self.message:
            _log.info("%s takes objects again", self._where)
        self.message = ""


def _hint(error: Exception) -> str:
    """What to do about it. Some libraries pass on only the system's words."""
    words = str(error)
    for number, hint in HINTS.items():
        if getattr(error, "errno", None) == number or os.strerror(number) in words:
            return hint
    return OTHER_HINT
