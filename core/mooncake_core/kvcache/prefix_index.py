"""Which node holds which block in which tier, and how long a prefix each of them has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from mooncake_core.kvcache import masks
from mooncake_core.wire.messages.tiering import DRAM, Tier

FEW: Final = 8
"""Bits of a mask that are sooner looked at one after the other than together."""
KNOWN_MASKS: Final = 4096
"""Of which a column of holders keeps the rows."""


class LowerRun(Struct, frozen=True, gc=False):
    """Blocks in a row that somebody has below DRAM, and not in DRAM."""

    start: int
    end: int
    mask: int
    """Of those holders."""
    only_there: bool
    """Nobody else has them: whoever wants them waits for them to be loaded."""


class Match(Struct, frozen=True, gc=False):
    """What is known of a prompt's blocks."""

    reach: int
    """Leading blocks that somebody has, whoever it is: what can be fetched block by block."""
    ends: list[tuple[int, int]]
    """A length, and a bit mask of the holders whose prefix is that long; the longest last."""
    lower: Sequence[LowerRun] = ()
    """Within reach."""

    @property
    def longest(self) -> int:
        """Of the prefix that a single holder has."""
        return self.ends[-1][0] if self.ends else 0

    @property
    def longest_lower(self) -> int:
        """Of these, how many the first of such holders has below DRAM."""
        mask = self.ends[-1][1] if self.ends else 0
        first = mask & -mask
        return sum(run.end - run.start for run in self.lower if run.mask & first and run.end <= self.longest)


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

    def item(self, row: int) -> int:
        """The entry of one row."""
        return next((number for number, rows in self.groups if row in rows), self.rest)

    def at_least(self, number: int) -> Lengths:
        """As if all had so many."""
        groups = [(max(other, number), rows) for other, rows in self.groups]
        return Lengths(self.num_rows, groups, max(self.rest, number))


class LowerBlocks(Struct, frozen=True, gc=False):
    """A LowerRun, with the rows of a table whose holders have it so."""

    start: int
    end: int
    rows: Rows
    only_there: bool


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
    """Block key → bit mask of holders. A match is a prefix: the first block that a holder lacks ends it.

    Beside it, for what lies below DRAM only: who has it so. Where nothing does, a match costs what it would without tiers.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._masks: dict[bytes, int] = {}
        self._lower: dict[bytes, int] = {}
        """Block key → bit mask of the holders whose fastest copy lies below DRAM. Keys that have none are not there."""

    def __len__(self) -> int:
        return len(self._masks)

    def stored(self, holder: str, keys: Sequence[bytes], tier: Tier = DRAM) -> None:
        """The holder has these blocks now, the fastest copy in this tier."""
        bit = 1 << self.number(holder)
        masks.add(self._masks, bit, keys)
        if tier != DRAM:
            masks.add(self._lower, bit, keys)
        elif self._lower:
            masks.take(self._lower, bit, keys)

    def removed(self, holder: str, keys: Sequence[bytes]) -> None:
        """The holder has these blocks no more."""
        if holder not in self._numbers:
            return
        bit = 1 << self._numbers[holder]
        masks.take(self._masks, bit, keys)
        if self._lower:
            masks.take(self._lower, bit, keys)

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
        if not self._lower:
            return Match(length, ends)
        return Match(length, ends, self._lower_runs(keys[:length]))

    def lengths(self, match: Match, holders: HolderColumn) -> Lengths:
        """Leading blocks that each row's holder has."""
        groups = [(length, self._rows(held, holders)) for length, mask in match.ends if (held := mask & holders.mask)]
        return Lengths(len(holders.numbers), groups)

    def lower(self, match: Match, holders: HolderColumn) -> list[LowerBlocks]:
        """What of it each row's holder, or all, would have to load."""
        return [
            LowerBlocks(run.start, run.end, self._rows(held, holders) if held else (), run.only_there)
            for run in match.lower
            if (held := run.mask & holders.mask) or run.only_there
        ]

    def _lower_runs(self, keys: Sequence[bytes]) -> Sequence[LowerRun]:
        lower = self._lower
        if lower.keys().isdisjoint(keys):
            return ()
        runs: list[LowerRun] = []
        position = start = before = 0
        held: int | None = 0
        for mask, holders in zip(map(lower.get, keys), map(self._masks.get, keys), strict=True):
            if mask is not before or holders is not held:  # as in `match`
                if before:
                    runs.append(LowerRun(start, position, before, before == held))
                start, before, held = position, mask or 0, holders
            position += 1
        if before:
            runs.append(LowerRun(start, position, before, before == held))
        return _joined(runs)

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


def _joined(runs: Sequence[LowerRun]) -> list[LowerRun]:
    """Those that follow each other and are alike as one."""
    found: list[LowerRun] = []
    for run in runs:
        last = found[-1] if found else None
        if last and (last.end, last.mask, last.only_there) == (run.start, run.mask, run.only_there):
            found[-1] = LowerRun(last.start, run.end, run.mask, run.only_there)
        else:
            found.append(run)
    return found
