"""Space within a segment: best fit, neighbours coalesced. Pure.

Free extents are kept by their exact length, so that the objects of a model, all of one size, take and leave the same places.
What an operation costs does not depend on how many extents there are; what is taken costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterable

from mooncake_core.store.lengths import Lengths


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
        self._starts: dict[int, dict[int, None]] = {}
        """Length → where free extents of that length start."""
        self._lengths = Lengths(capacity + 1)
        self._end = start + capacity
        cursor = start
        for offset, length in sorted(taken):
            if offset < cursor or offset + length > start + capacity:
                raise ValueError(f"extent {offset}+{length} overlaps another one, or lies outside of the segment")
            self._insert(cursor, offset - cursor)
            cursor = offset + length
        self._rest = cursor
        """Where the last free extent starts, which ends with the segment and may be empty: a segment fills up without the
        others."""
        self.free_bytes += self._end - cursor

    @property
    def used_bytes(self) -> int:
        return self.capacity - self.free_bytes

    @property
    def largest_free(self) -> int:
        """Length of the longest free extent."""
        return max(self._lengths.largest() or 0, self._end - self._rest)

    def allocate(self, length: int) -> int | None:
        """The offset of a new extent, from the smallest free one it fits in; None where none does."""
        if length <= 0:
            return None
        found = self._lengths.at_least(length) if self._starts else None
        if length <= self._end - self._rest and (found is None or self._end - self._rest <= found):
            return self._from_rest(length)
        if found is None:
            return None
        starts = self._starts[found]
        offset, _ = starts.popitem()
        if not starts:
            self._forget_length(found)
        self._forget_extent(offset, found)
        self._insert(offset + length, found - length)
        return offset

    def free(self, offset: int, length: int) -> None:
        """Gives an extent back."""
        before = self._start_of_end.get(offset)
        if before is not None:
            before_length = self._length_at[before]
            self._remove(before, before_length)
            offset, length = before, before_length + length
        if offset + length == self._rest:
            self._rest = offset
            self.free_bytes += length
            return
        after_length = self._length_at.get(offset + length)
        if after_length is not None:
            self._remove(offset + length, after_length)
            length += after_length
        self._insert(offset, length)

    def _from_rest(self, length: int) -> int:
        offset = self._rest
        self._rest += length
        self.free_bytes -= length
        return offset

    def _insert(self, offset: int, length: int) -> None:
        if not length:
            return
        self._length_at[offset] = length
        self._start_of_end[offset + length] = offset
        self.free_bytes += length
        starts = self._starts.get(length)
        if starts is None:
            starts = self._starts[length] = {}
            self._lengths.add(length)
        starts[offset] = None

    def _remove(self, offset: int, length: int) -> None:
        starts = self._starts[length]
        del starts[offset]
        if not starts:
            self._forget_length(length)
        self._forget_extent(offset, length)

    def _forget_extent(self, offset: int, length: int) -> None:
        del self._length_at[offset]
        del self._start_of_end[offset + length]
        self.free_bytes -= length

    def _forget_length(self, length: int) -> None:
        del self._starts[length]
        self._lengths.remove(length)
