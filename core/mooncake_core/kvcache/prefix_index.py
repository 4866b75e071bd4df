"""Which node holds which block, and how long a prefix each of them has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PrefixIndex:
    """Block key → bit mask of holders. A match is a prefix: the first block that a holder lacks ends it."""

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._names: list[str] = []
        self._masks: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def stored(self, holder: str, keys: Iterable[bytes]) -> None:
        """The holder has these blocks now."""
        bit = 1 << self._number(holder)
        masks = self._masks
        for key in keys:
            masks[key] = masks.get(key, 0) | bit

    def removed(self, holder: str, keys: Iterable[bytes]) -> None:
        """The holder has these blocks no more."""
        if holder not in self._bits:
            return
        bit = 1 << self._bits[holder]
        for key in keys:
            mask = self._masks.get(key, 0) & ~bit
            if mask:
                self._masks[key] = mask
            else:
                self._masks.pop(key, None)

    def drop(self, holder: str) -> None:
        """The holder is gone with all it had."""
        if holder not in self._bits:
            return
        bit = 1 << self._bits[holder]
        self.removed(holder, [key for key, mask in self._masks.items() if mask & bit])

    def match(self, keys: Sequence[bytes]) -> dict[str, int]:
        """Holder → number of leading blocks it has; holders without the first block are left out."""
        lengths: dict[str, int] = {}
        alive = -1
        for length, key in enumerate(keys):
            still = alive & self._masks.get(key, 0)
            if length:
                self._record(lengths, alive & ~still, length)
            alive = still
            if not alive:
                return lengths
        self._record(lengths, alive if keys else 0, len(keys))
        return lengths

    def reach(self, keys: Sequence[bytes]) -> int:
        """Number of leading blocks that somebody has, whoever it is: what can be fetched block by block."""
        for length, key in enumerate(keys):
            if key not in self._masks:
                return length
        return len(keys)

    def _record(self, lengths: dict[str, int], mask: int, length: int) -> None:
        while mask:
            bit = mask & -mask
            lengths[self._names[bit.bit_length() - 1]] = length
            mask ^= bit

    def _number(self, holder: str) -> int:
        number = self._bits.get(holder)
        if number is None:
            number = self._bits[holder] = len(self._names)
            self._names.append(holder)
        return number
