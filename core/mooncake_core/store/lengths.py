"""A set of numbers that finds the next one above or below: a tree of bitmaps. Pure."""

from __future__ import annotations

from typing import Final

_SHIFT: Final = 10
"""Bits of a number that one level takes: a word has 1,024 bits, which one operation of Python's looks through."""
_MASK: Final = (1 << _SHIFT) - 1


class Lengths:
    """Numbers below a limit. Each operation takes some steps per level, and there are log(limit) / 10 levels."""

    def __init__(self, limit: int) -> None:
        num_levels = max(1, -(-limit.bit_length() // _SHIFT))
        self._levels: list[dict[int, int]] = [{} for _ in range(num_levels)]
        """Index → word. A bit says whether there is a number, or on the upper levels, whether there is a word below."""

    def add(self, number: int) -> None:
        """Puts a number in that is not there."""
        for words in self._levels:
            index = number >> _SHIFT
            word = words.get(index, 0)
            words[index] = word | 1 << (number & _MASK)
            if word:
                return  # the levels above know of it
            number = index

    def remove(self, number: int) -> None:
        """Takes a number out that is there."""
        for words in self._levels:
            index = number >> _SHIFT
            word = words[index] ^ 1 << (number & _MASK)
            if word:
                words[index] = word
                return
            del words[index]
            number = index

    def at_least(self, number: int) -> int | None:
        """The smallest one that is not smaller than `number`."""
        for level, words in enumerate(self._levels):
            index = number >> _SHIFT
            above = words.get(index, 0) >> (number & _MASK)
            if above:
                number += _lowest(above)
                for below in reversed(self._levels[:level]):
                    number = (number << _SHIFT) + _lowest(below[number])
                return number
            number = index + 1
        return None

    def largest(self) -> int | None:
        """The largest one."""
        if not self._levels[-1]:
            return None
        number = 0
        for words in reversed(self._levels):
            number = (number << _SHIFT) + words[number].bit_length() - 1
        return number


def _lowest(word: int) -> int:
    """Number of the lowest bit that is set."""
    return (word & -word).bit_length() - 1
