"""Checks of what callers pass, before anything is done with it."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any

from mooncake._codes import Code

_log = logging.getLogger("mooncake.store")


def the_key(key: Any) -> str:
    """A key; bytes are taken for UTF-8.

    Raises:
        TypeError: it is none.
    """
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return key.decode()
    raise TypeError(f"expected a key of type str, got {type(key).__name__}")


def the_keys(keys: Any) -> list[str]:
    """A list of keys.

    Raises:
        TypeError: it is none.
    """
    if isinstance(keys, str | bytes):
        raise TypeError(f"expected a list of keys, got {type(keys).__name__}")
    if isinstance(keys, list) and set(map(type, keys)) == {str}:  # quicker than to look at each
        return keys
    return [the_key(key) for key in keys]


def the_bytes(value: Any) -> memoryview:
    """What is to be stored.

    Raises:
        TypeError: it is no buffer, or not contiguous.
    """
    view = memoryview(value)
    if not view.c_contiguous:
        raise TypeError("expected a contiguous buffer")
    return view.cast("B") if view.nbytes else memoryview(b"")


def each(code: int, keys: Sequence[object]) -> list[int]:
    """The same answer for every key."""
    return [code] * len(keys)


@functools.cache
def without_effect(what: str, why: str) -> None:
    """Says in the log, once, that something that was asked for changes nothing."""
    _log.warning("%s has no effect: %s", what, why)


def of_one_length(*lists: Sequence[object]) -> bool:
    """Whether the lists of a call have an element each for every object; where they have not the log says so."""
    lengths = list(map(len, lists))
    if len(set(lengths)) > 1:
        _log.error("expected lists of one length, got %s elements", " and ".join(map(str, lengths)))
    return len(set(lengths)) <= 1


def spread(count: int, places: Sequence[int], codes: Sequence[int]) -> list[int]:
    """The answers for some of a call's objects, each at its place; INVALID_PARAMS for the others."""
    spread_out = [int(Code.INVALID_PARAMS)] * count
    for place, code in zip(places, codes, strict=True):
        spread_out[place] = code
    return spread_out


def first_failure(codes: Sequence[int]) -> int:
    """One answer for all: the first code that is no success."""
    return next((code for code in codes if code < 0), int(Code.OK))
