"""The term of a master: higher than that of every one before it, also when the clock was set back."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mooncake_core import whole_file

IDS_PER_TERM: Final = 1 << 40
"""Allocation ids count from the term on: terms that do not come from the clock keep so far apart."""


def next_term(file: Path, now_us: int) -> int:
    """The time in microseconds, or more where a master that used `file` had a term as high."""
    previous = _read(file)
    term = now_us if now_us > previous else previous + IDS_PER_TERM
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    whole_file.write(file, f"{term}\n".encode())
    return term


def _read(file: Path) -> int:
    try:
        return int(file.read_text())
    except (FileNotFoundError, ValueError):
        return 0
