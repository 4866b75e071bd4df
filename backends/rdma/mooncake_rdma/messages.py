"""An operation as work requests of a queue pair: contiguous at the peer, gathered or scattered here. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from mooncake_core.transfer.contract import Range

MESSAGE_BYTES: Final = 512 << 10
"""A withdrawal waits for the messages under way: so long they are at most."""
STAGED_BYTES: Final = 128 << 10
"""Of one message through pinned memory of ours, where the caller's is not registered."""

M = TypeVar("M")


class Segment(NamedTuple, Generic[M]):
    """A part of a piece."""

    view: memoryview
    address: int
    region: M | None
    """The registered memory that it lies in."""


class Target(NamedTuple):
    """A part of a range that one remote key covers."""

    offset: int
    length: int
    key: int
    """Its place among the export's keys."""
    begins_range: bool


@dataclass(slots=True)
class Message(Generic[M]):
    """One work request to be."""

    offset: int
    """Of the first byte at the peer, in the region."""
    key: int
    is_staged: bool
    is_barrier: bool
    """Not to be posted before those before it have completed."""
    segments: list[Segment[M]]
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a message."""

    segments: int
    """That a queue pair takes."""
    message_bytes: int = MESSAGE_BYTES
    staged_bytes: int = STAGED_BYTES


def targets(ranges: Sequence[Range], starts: Sequence[int], ends: Sequence[int]) -> Iterator[Target]:
    """Ranges, each of which lies in one of the hulls that begin and end there, or in several that touch."""
    for part in ranges:
        offset, left, begins = part.offset, part.length, True
        while left:
            key = bisect_right(starts, offset) - 1
            length = min(left, ends[key] - offset)
            yield Target(offset, length, key, begins)
            offset, left, begins = offset + length, left - length, False


def messages(
    pieces: Sequence[Segment[M]], ranges: Iterator[Target], limits: Limits, *, in_order: bool
) -> list[Message[M]]:
    """Those that together move all bytes. `in_order`: what goes to a range waits until the ranges before are complete."""
    made: list[Message[M]] = []
    rest = iter(pieces)
    piece = Segment[M](memoryview(b""), 0, None)
    for target in ranges:
        offset, left = target.offset, target.length
        is_barrier = in_order and target.begins_range and bool(made)
        while left:
            while not piece.view.nbytes:
                piece = next(rest)
            last = made[-1] if made and not is_barrier else None
            if last is None or not _continues(last, piece, offset, target.key, limits):
                last = Message(offset, target.key, piece.region is None, is_barrier, [])
                made.append(last)
                is_barrier = False
            most = limits.staged_bytes if last.is_staged else limits.message_bytes
            length = min(left, piece.view.nbytes, most - last.num_bytes)
            last.segments.append(Segment(piece.view[:length], piece.address, piece.region))
            last.num_bytes += length
            piece = Segment(piece.view[length:], piece.address + length, piece.region)
            offset, left = offset + length, left - length
    return made


def _continues(message: Message[M], piece: Segment[M], offset: int, key: int, limits: Limits) -> bool:
    """Whether a message can take a part of a piece that goes to this offset."""
    if message.is_staged != (piece.region is None) or message.key != key:
        return False
    if message.offset + message.num_bytes != offset:
        return False
    if message.is_staged:
        return message.num_bytes < limits.staged_bytes
    return message.num_bytes < limits.message_bytes and len(message.segments) < limits.segments
