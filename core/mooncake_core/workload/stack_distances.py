"""How far back blocks were last used: the LRU hit ratio of every capacity in one pass (Mattson et al., IBM Systems Journal 9(2),
1970), in O(n log n).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def stack_distances(uses: Ints) -> Ints:
    """For each use of a block: how many different blocks were used since the last use of this one, it included. An LRU cache of
    so many blocks, or more, has it. 0: it was never used before. Blocks are numbered from 0."""
    count = len(uses)
    previous = _previous(uses)
    again = np.flatnonzero(previous >= 0)
    since = previous[again]
    distances = np.zeros(count, dtype=np.int64)
    # Between a use and the next one of the same block lie all others, less those of blocks that are used again in between:
    # pairs (last use, use) inside this pair, which began later and ended earlier.
    distances[again] = again - since - _greater_before(_ranks(since))
    return distances


def _previous(uses: Ints) -> Ints:
    """Index of the last use of the same block; -1 where there is none."""
    by_block = np.argsort(uses, kind="stable")
    previous = np.full(len(uses), -1, dtype=np.int64)
    same = uses[by_block[1:]] == uses[by_block[:-1]]
    previous[by_block[1:][same]] = by_block[:-1][same]
    return previous


def _ranks(values: Ints) -> Ints:
    """Of values that are all different."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks


def _greater_before(ranks: Ints) -> Ints:
    """For each of the numbers 0 to n - 1 in some order: how many before it are greater. Bit by bit from the highest one: numbers
    that are equal up to a bit stand together, in their order, and those with a 1 there are greater than those with a 0."""
    count = len(ranks)
    found = np.zeros(count, dtype=np.int64)  # by number
    standing, places = ranks.copy(), np.arange(count)
    for bit in reversed(range(max(1, count - 1).bit_length())):
        ones = (standing >> bit) & 1
        before = np.cumsum(ones) - ones
        group = (places >> (bit + 1)) << (bit + 1)  # numbers of a group take as many places, from the same one on
        ones_before = before - before[group] if count else before
        zero = ones == 0
        found[standing[zero]] += ones_before[zero]
        moved = np.where(zero, places - ones_before, group + (1 << bit) + ones_before)
        arranged = np.empty_like(standing)
        arranged[moved] = standing
        standing = arranged
    return found[ranks]
