"""How the two ends of a transfer lie in memory: cut into slices that several connections can carry, or into pairs to copy.
Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mooncake_core.transfer.contract import Range

SLICE_BYTES: Final = 4 << 20
SMALLEST_SLICE_BYTES: Final = 1 << 20
"""A request up to this size goes in one piece: most blocks do."""
PAGE_BYTES: Final = 4 << 10

Slice = tuple[tuple[memoryview, ...], tuple[Range, ...]]


def slice_bytes(num_bytes: int, num_ways: int) -> int:
    """How long the slices of so many bytes are: such that each of so many ways has one, within bounds."""
    share = -(-num_bytes // (num_ways * PAGE_BYTES)) * PAGE_BYTES
    return min(SLICE_BYTES, max(SMALLEST_SLICE_BYTES, share))


def total_bytes(pieces: Sequence[memoryview]) -> int:
    """Of all pieces."""
    return pieces[0].nbytes if len(pieces) == 1 else sum([piece.nbytes for piece in pieces])


def split(pieces: Sequence[memoryview], num_bytes: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first so many bytes, and the others."""
    near = cut_pieces(pieces, num_bytes)
    return near[0], [piece for part in near[1:] for piece in part]


def cut(pieces: Sequence[memoryview], ranges: Sequence[Range], slice_bytes: int = SLICE_BYTES) -> list[Slice]:
    """(pieces, remote ranges) of each slice, in order; together they are the transfer."""
    total = total_bytes(pieces)
    if total <= slice_bytes:
        return [(tuple(pieces), tuple(ranges))]
    starts = range(0, total, slice_bytes)
    near = cut_pieces(pieces, slice_bytes)
    far = _cut_far(ranges, slice_bytes)
    return [(tuple(near[index]), tuple(far[index])) for index in range(len(starts))]


def joined(ranges: Sequence[Range]) -> Sequence[Range]:
    """The same bytes in the same order: what goes on where the one before ended is one range with it."""
    end = None
    for part in ranges:
        if part.offset == end:
            break
        end = part.offset + part.length
    else:  # mostly
        return ranges
    found: list[Range] = []
    for part in ranges:
        if found and found[-1].offset + found[-1].length == part.offset:
            found[-1] = Range(found[-1].offset, found[-1].length + part.length)
        else:
            found.append(part)
    return found


def pair(near: Sequence[memoryview], far: Sequence[memoryview]) -> Iterator[tuple[memoryview, memoryview]]:
    """Parts of equal length of both ends, which have the same total length, in order."""
    there = iter(far)
    remote = memoryview(b"")
    for piece in near:
        while piece.nbytes:
            while not remote.nbytes:
                remote = next(there)
            if piece.nbytes == remote.nbytes:  # mostly
                yield piece, remote
                remote = memoryview(b"")
                break
            length = min(piece.nbytes, remote.nbytes)
            yield piece[:length], remote[:length]
            piece, remote = piece[length:], remote[length:]


def cut_pieces(pieces: Sequence[memoryview], slice_bytes: int) -> list[list[memoryview]]:
    """In slices of so many bytes, the last of which may be shorter; one empty slice where there are none."""
    slices: list[list[memoryview]] = [[]]
    room = slice_bytes
    for piece in pieces:
        while piece.nbytes:
            if room == 0:
                slices.append([])
                room = slice_bytes
            part, piece = piece[:room], piece[room:]
            slices[-1].append(part)
            room -= part.nbytes
    return slices


def _cut_far(ranges: Sequence[Range], slice_bytes: int) -> list[list[Range]]:
    slices: list[list[Range]] = [[]]
    room = slice_bytes
    for part in ranges:
        offset, left = part.offset, part.length
        while left:
            if room == 0:
                slices.append([])
                room = slice_bytes
            length = min(room, left)
            slices[-1].append(Range(offset, length))
            offset, left, room = offset + length, left - length, room - length
    return slices
