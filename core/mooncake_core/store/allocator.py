"""Space within a segment: best fit, neighbours coalesced. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable


def coalesced(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, length) of extents, in order; those that touch each other as one."""
    merged: list[tuple[int, int]] = []
    end = -1
    for offset, length in sorted(extents):
        if offset == end:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((offset, length))
        end = offset + length
    return merged


class Allocator:
    """Extents of [start, start + capacity)."""

    def __init__(self, start: int, capacity: int, taken: Iterable[tuple[int, int]] = ()) -> None:
        """`taken`: (offset, length) of extents in use from the beginning; they must not overlap.

        Raises:
            ValueError: taken extents overlap, or lie outside.
        """
        self.start = start
        self.capacity = capacity
        self.free_bytes = 0
        self._length_at: dict[int, int] = {}
        self._start_of_end: dict[int, int] = {}
        self._by_length: list[tuple[int, int]] = []
        cursor = start
        for offset, length in sorted(taken):
            if offset < cursor or offset + length > start + capacity:
                raise ValueError(f"extent {offset}+{length} overlaps another one, or lies outside of the segment")
            self._insert(cursor, offset - cursor)
            cursor = offset + length
        self._insert(cursor, start + capacity - cursor)

    @property
    def used_bytes(self) -> int:
        return self.capacity - self.free_bytes

    @property
    def largest_free(self) -> int:
        """Length of the longest free extent."""
        return self._by_length[-1][0] if self._by_length else 0

    def allocate(self, length: int) -> int | None:
        """The offset of a new extent, from the smallest free one it fits in; None where none does."""
        index = bisect_left(self._by_length, (length, -1))
        if length <= 0 or index == len(self._by_length):
            return None
        found, offset = self._by_length[index]
        self._remove(offset, found)
        self._insert(offset + length, found - length)
        return offset

    def free(self, offset: int, length: int) -> None:
        """Gives an extent back."""
        before = self._start_of_end.get(offset)
        if before is not None:
            before_length = self._length_at[before]
            self._remove(before, before_length)
            offset, length = before, before_length + length
        after_length = self._length_at.get(offset + length)
        if after_length is not None:
            self._remove(offset + length, after_length)
            length += after_length
        self._insert(offset, length)

    def _insert(self, offset: int, length: int) -> None:
        if length:
            self._length_at[offset] = length
            self._start_of_end[offset + length] = offset
            insort(self._by_length, (length, offset))
            self.free_bytes += length

    def _remove(self, offset: int, length: int) -> None:
        del self._length_at[offset]
        del self._start_of_end[offset + length]
        del self._by_length[bisect_left(self._by_length, (length, offset))]
        self.free_bytes -= length
