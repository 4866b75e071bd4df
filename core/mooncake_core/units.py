"""Sizes and durations as people write them: "4GiB", "64k", "30s", "100ms"."""

from __future__ import annotations

import math
import re

_SIZE = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_DURATION = {
    "": 1.0,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Zµ]*)\s*")


def parse_size(text: str | int) -> int:
    """Bytes in "4GiB", "512MB", "64k" or a plain number.

    Raises:
        ValueError: the text is no size; the message says what is accepted.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"expected a size of 0 or more, got {text}")
        return text
    number, unit = _split(text, "a size like 4GiB, 512MB or 65536")
    if unit.lower() not in _SIZE:
        raise ValueError(f"expected a size like 4GiB, 512MB or 65536, got {text!r}")
    size = number * _SIZE[unit.lower()]
    if size != math.floor(size):
        raise ValueError(f"expected a whole number of bytes, got {text!r}")
    return int(size)


def parse_duration(text: str | float) -> float:
    """Seconds in "30s", "100ms", "5m" or a plain number.

    Raises:
        ValueError: the text is no duration; the message says what is accepted.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if not math.isfinite(text) or text < 0:
            raise ValueError(f"expected a duration of 0 or more seconds, got {text}")
        return float(text)
    number, unit = _split(text, "a duration like 30s, 100ms or 5m")
    if unit not in _DURATION:
        raise ValueError(f"expected a duration like 30s, 100ms or 5m, got {text!r}")
    return number * _DURATION[unit]


def format_size(size_bytes: float) -> str:
    """The shortest exact-looking form: 4294967296 → "4GiB", 1536 → "1.5KiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        scale = _SIZE[unit.lower()]
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:.4g}{unit}"
    return f"{size_bytes:.0f}B"


def format_duration(seconds: float) -> str:
    """A readable form: 0.0123 → "12.3ms", 90 → "90s", 7200 → "2h"."""
    if abs(seconds) < 1e-9:
        return "0s"
    for limit, scale, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (120.0, 1.0, "s"), (3600.0, 1 / 60, "m")):
        if abs(seconds) < limit:
            return f"{_rounded(seconds * scale)}{unit}"
    return f"{_rounded(seconds / 3600)}h"


def _rounded(value: float) -> str:
    """Three digits that count, never in scientific notation."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def _split(text: object, expected: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"expected {expected}, got {text!r}")
    return float(match.group(1)), match.group(2)
