"""Checks of what callers of `mooncake.engine` pass: upstream takes texts and numbers from 0 on, and raises TypeError else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def a_name(value: Any) -> str:
    """A text; bytes are taken for UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    raise TypeError(f"expected a str, got {type(value).__name__}")


def a_number(value: Any) -> int:
    """An address or a length."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise TypeError(f"expected an int from 0 on, got {value!r}")


def numbers(values: Any) -> Sequence[int]:
    """A list of addresses or lengths."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"expected a list of int, got {type(values).__name__}")
    if values and (set(map(type, values)) != {int} or min(values) < 0):
        return [a_number(value) for value in values]
    return values
