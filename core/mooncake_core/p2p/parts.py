"""Where the bytes of a shard lie at the two ends of a fetch. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mooncake_core.transfer.addresses import Span


def shard_span(shard: int, shard_bytes: int, size_bytes: int) -> Span:
    """The shard's bytes in the object."""
    start = shard * shard_bytes
    return Span(start, min(shard_bytes, size_bytes - start))


def pieces_of(views: Sequence[memoryview], part: Span) -> list[memoryview]:
    """A part of the bytes that the views have one after the other."""
    pieces = []
    start = 0
    for view in views:
        begin, end = max(part.address - start, 0), min(part.address + part.length - start, view.nbytes)
        if begin < end:
            pieces.append(view[begin:end])
        start += view.nbytes
    return pieces


def places(
    pieces: Sequence[memoryview], spans: Sequence[tuple[int, int]], start: int
) -> Iterator[tuple[memoryview, int]]:
    """Parts of the pieces, each with the address of its bytes in the spans, of which the first `start` bytes are others'."""
    far = iter(spans)
    address, left = next(far)
    while start >= left:
        start -= left
        address, left = next(far)
    address, left = address + start, left - start
    for piece in pieces:
        while piece.nbytes:
            while not left:
                address, left = next(far)
            length = min(piece.nbytes, left)
            yield piece[:length], address
            piece, address, left = piece[length:], address + length, left - length
