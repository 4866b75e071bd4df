"""Which node holds which block, and how long a prefix each of them has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

FEW: Final = 8
"""Bits of a mask that are sooner looked at one after the other than together."""
KNOWN_MASKS: Final = 4096
"""Of which a column of holders keeps the rows."""


class Match(Struct, frozen=True, gc=False):
    """What is known of a prompt's blocks."""

    reach: int
    """Leading blocks that somebody has, whoever it is: what can be fetched block by block."""
    ends: list[tuple[int, int]]
    """A length, and a bit mask of the holders whose prefix is that long; the longest last."""

    @property
    def longest(self) -> int:
        """Of the prefix that a single holder has."""
        return self.ends[-1][0] if self.ends else 0


Rows = Sequence[int] | npt.NDArray[np.intp]


class Lengths(Struct, frozen=True, gc=False):
    """Leading blocks that the holder in each row of a table has. There are few different numbers of them, and most have none."""

    num_rows: int
    groups: Sequence[tuple[int, Rows]]
    """A number, and the rows that have so many."""
    rest: int = 0
    """In all other rows."""

    def column(self) -> npt.NDArray[np.int64]:
        """One entry for each row."""
        found = np.full(self.num_rows, self.rest, np.int64)
        for number, rows in self.groups:
            found[rows] = number
        return found

    def at_least(self, number: int) -> Lengths:
        """As if all had so many."""
        groups = [(max(other, number), rows) for other, rows in self.groups]
        return Lengths(self.num_rows, groups, max(self.rest, number))


class HolderColumn:
    """The holders that somebody has in rows of a table; one may be in several of them."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers: npt.NDArray[np.intp] = np.array(numbers, np.intp)
        self.rows: dict[int, list[int]] = {}
        self.rows_of_mask: dict[int, Rows] = {}
        """Of some masks that were looked at: few sets of holders have most prefixes."""
        self.mask = 0
        for row, number in enumerate(numbers):
            self.rows.setdefault(number, []).append(row)
            self.mask |= 1 << number


class PrefixIndex:
    """Block key → bit mask of holders. A match is a prefix: the first block that a holder lacks ends it."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._masks: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def stored(self, holder: str, keys: Iterable[bytes]) -> None:
        """The holder has these blocks now."""
        bit = 1 << self.number(holder)
        masks = self._masks
        before, after = 0, bit
        for key in keys:
            mask = masks.get(key, 0)
            if mask != before:
                before, after = mask, mask | bit
            masks[key] = (
                after  # one object for neighbours that are held alike: a mask of a thousand holders has 160 bytes
            )

    def removed(self, holder: str, keys: Iterable[bytes]) -> None:
        """The holder has these blocks no more."""
        if holder not in self._numbers:
            return
        bit = 1 << self._numbers[holder]
        for key in keys:
            mask = self._masks.get(key, 0) & ~bit
            if mask:
                self._masks[key] = mask
            else:
                self._masks.pop(key, None)

    def drop(self, holder: str) -> None:
        """The holder is gone with all it had."""
        if holder not in self._numbers:
            return
        bit = 1 << self._numbers[holder]
        self.removed(holder, [key for key, mask in self._masks.items() if mask & bit])

    def match(self, keys: Sequence[bytes]) -> Match:
        """In one walk along the keys, as far as anybody has them."""
        ends: list[tuple[int, int]] = []
        alive = before = -1
        length = 0
        for mask in map(self._masks.get, keys):
            if mask is not before:  # equal ones are one object mostly; where they are not, `still` says the same
                if mask is None:
                    break
                still = alive & mask
                if still != alive:
                    if length:
                        ends.append((length, alive & ~still))
                    alive = still
                before = mask
            length += 1
        if length and alive:
            ends.append((length, alive))
        return Match(length, ends)

    def lengths(self, match: Match, holders: HolderColumn) -> Lengths:
        """Leading blocks that each row's holder has."""
        groups = [(length, self._rows(held, holders)) for length, mask in match.ends if (held := mask & holders.mask)]
        return Lengths(len(holders.numbers), groups)

    def _rows(self, mask: int, holders: HolderColumn) -> Rows:
        rows = holders.rows_of_mask.get(mask)
        if rows is None:
            if len(holders.rows_of_mask) == KNOWN_MASKS:
                holders.rows_of_mask.clear()
            rows = holders.rows_of_mask[mask] = self._find_rows(mask, holders)
        return rows

    def _find_rows(self, mask: int, holders: HolderColumn) -> Rows:
        if mask.bit_count() > FEW:
            packed = np.frombuffer(mask.to_bytes((len(self._names) + 7) // 8, "little"), np.uint8)
            return np.unpackbits(packed, bitorder="little")[holders.numbers].nonzero()[0]
        rows: list[int] = []
        while mask:
            bit = mask & -mask
            rows += holders.rows[bit.bit_length() - 1]
            mask ^= bit
        return rows

    def column(self, names: Sequence[str]) -> HolderColumn:
        """Of these holders."""
        return HolderColumn([self.number(name) for name in names])

    def number(self, holder: str) -> int:
        """Of its bit in masks."""
        number = self._numbers.get(holder)
        if number is None:
            number = self._numbers[holder] = len(self._names)
            self._names.append(holder)
        return number

    def holders(self, key: bytes) -> int:
        """A mask of those that have a block."""
        return self._masks.get(key, 0)

    def names(self, mask: int) -> list[str]:
        """Of the holders in a mask."""
        found = []
        while mask:
            bit = mask & -mask
            found.append(self._names[bit.bit_length() - 1])
            mask ^= bit
        return found
