"""A line that counts, on a terminal, for what takes longer than QUIET_S."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

QUIET_S: Final = 2.0


def counter(total: int, what: str) -> Callable[[int], None]:
    """To be called with how many are done."""
    started = time.monotonic()
    if not sys.stderr.isatty():
        return lambda done: None

    def show(done: int) -> None:
        if time.monotonic() - started > QUIET_S:
            sys.stderr.write(f"\r{done}/{total} {what}" + ("\n" if done == total else ""))
            sys.stderr.flush()

    return show
