"""Copies between memories; long ones leave the interpreter lock to others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from mooncake_core.transfer.slices import pair

LOCKED_BYTES: Final = 32 << 10
"""Shorter pieces are copied faster than the lock is given away and taken back."""


def copy(pieces: Sequence[memoryview], memories: Sequence[memoryview], *, write: bool) -> None:
    """Moves bytes between local pieces and mapped memory of the same total length."""
    for here, there in _pairs(pieces, memories):
        target, source = (there, here) if write else (here, there)
        if here.nbytes <= LOCKED_BYTES:
            target[:] = source
        else:  # as quick to call as anything that gives the lock away
            np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


def _pairs(pieces: Sequence[memoryview], memories: Sequence[memoryview]) -> Iterable[tuple[memoryview, memoryview]]:
    """Parts of equal length; mostly both ends are cut alike."""
    if len(pieces) == len(memories) == 1:  # a single one is to be quick
        return ((pieces[0], memories[0]),)
    alike = len(pieces) == len(memories) and all(map(_equally_long, pieces, memories))
    return zip(pieces, memories, strict=True) if alike else pair(pieces, memories)


def _equally_long(one: memoryview, other: memoryview) -> bool:
    return one.nbytes == other.nbytes
