"""Space: never given out twice, never lost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.store.allocator import Allocator

CAPACITY = 64 * 40


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=120))
def test_extents_never_overlap_and_all_space_comes_back(steps: list[tuple[bool, int]]) -> None:
    allocator = Allocator(128, CAPACITY)
    live: list[tuple[int, int]] = []
    for allocate, number in steps:
        if allocate or not live:
            length = 64 * number
            offset = allocator.allocate(length)
            if offset is None:
                assert allocator.largest_free < length
            else:
                assert 128 <= offset <= 128 + CAPACITY - length
                live.append((offset, length))
        else:
            allocator.free(*live.pop(number % len(live)))
        ordered = sorted(live)
        assert all(a + b <= c for (a, b), (c, _) in itertools.pairwise(ordered))
        assert allocator.used_bytes == sum(length for _, length in live)
    for extent in live:
        allocator.free(*extent)
    assert allocator.largest_free == CAPACITY


@given(st.lists(st.integers(1, 5), max_size=8), st.data())
def test_a_rebuilt_allocator_knows_what_is_taken(lengths: list[int], data: st.DataObject) -> None:
    first = Allocator(0, CAPACITY)
    extents = [(first.allocate(64 * length), 64 * length) for length in lengths]
    kept = [(offset, length) for offset, length in extents if offset is not None and data.draw(st.booleans())]
    rebuilt = Allocator(0, CAPACITY, kept)
    assert rebuilt.used_bytes == sum(length for _, length in kept)
    while (offset := rebuilt.allocate(64)) is not None:
        assert all(offset + 64 <= start or offset >= start + length for start, length in kept)
    assert rebuilt.free_bytes == 0


@pytest.mark.parametrize("taken", [[(0, 64), (32, 64)], [(CAPACITY - 32, 64)]])
def test_extents_that_cannot_be_are_refused(taken: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="overlaps"):
        Allocator(0, CAPACITY, taken)
