"""Whether the machine is quiet enough to be measured on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.3
BUSY_SHARE: Final = 0.1
IDLE, IOWAIT = 3, 4
"""Columns of /proc/stat."""


def busy_warning(look_s: float = LOOK_S) -> str:
    """What to know about figures measured now; empty where nobody else uses the machine."""
    share = busy_share(look_s)
    if share < BUSY_SHARE:
        return ""
    return (
        f"{share:.0%} of the {os.cpu_count()} cores are used by something else: figures are lower than this machine's own; "
        "ratios of alternating runs hold, within their interval"
    )


def busy_share(look_s: float) -> float:
    """Share of all cores' time that was used while we waited; 0 where the kernel does not say."""
    before = _times()
    time.sleep(look_s)
    spent = [after - earlier for earlier, after in zip(before, _times(), strict=True)]
    return 1 - (spent[IDLE] + spent[IOWAIT]) / sum(spent) if sum(spent) else 0.0


def _times() -> list[int]:
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return []
    return [int(column) for column in first.split()[1:9]]
