"""Copies between memories; long ones leave the interpreter lock to others."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final

from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.slices import pair

LOCKED_BYTES: Final = 32 << 10
"""Shorter pieces are copied faster than the lock is given away and taken back."""


def copy(pieces: Sequence[memoryview], memories: Sequence[memoryview], *, write: bool) -> None:
    """Moves bytes between local pieces and mapped memory of the same total length."""
    alone = len(pieces) == len(memories) == 1
    for here, there in ((pieces[0], memories[0]),) if alone else pair(pieces, memories):
        target, source = (there, here) if write else (here, there)
        if here.nbytes <= LOCKED_BYTES:
            target[:] = source
        else:
            ctypes.memmove(address_of(target), address_of(source), here.nbytes)
