"""Cuts a transfer into slices that several connections can carry at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SLICE_BYTES: Final = 4 << 20
"""A request up to this size goes in one piece: most blocks do."""


def cut(
    pieces: Sequence[memoryview], offset: int, slice_bytes: int = SLICE_BYTES
) -> list[tuple[tuple[memoryview, ...], int]]:
    """(pieces, remote offset) of each slice, in order; together they are the transfer."""
    total = sum(piece.nbytes for piece in pieces)
    if total <= slice_bytes:
        return [(tuple(pieces), offset)]
    slices: list[tuple[tuple[memoryview, ...], int]] = []
    current: list[memoryview] = []
    room = slice_bytes
    for piece in pieces:
        while piece.nbytes:
            part, piece = piece[:room], piece[room:]
            current.append(part)
            room -= part.nbytes
            if room == 0:
                slices.append((tuple(current), offset))
                offset += slice_bytes
                current, room = [], slice_bytes
    if current:
        slices.append((tuple(current), offset))
    return slices
