"""Checks of what callers of `mooncake.engine` pass: upstream takes texts and numbers from 0 on, and raises TypeError else."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any


def a_name(value: Any) -> str:
    """A text; bytes are taken for UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    raise TypeError(f"expected a str, got {type(value).__name__}")


def a_number(value: Any) -> int:
    """An address or a length, whatever counts as a whole number: NumPy's too."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise TypeError(f"expected an int from 0 on, got {value!r}")
    return number


def numbers(values: Any) -> Sequence[int]:
    """A list of addresses or lengths, or another sequence: an array, say."""
    if isinstance(values, list) and (not values or (set(map(type, values)) == {int} and min(values) >= 0)):
        return values  # mostly
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__getitem__"):
        raise TypeError(f"expected a list of int, got {type(values).__name__}")
    return [a_number(value) for value in values]
