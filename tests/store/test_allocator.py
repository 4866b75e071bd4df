"""Space: never given out twice, never lost, and found as long as there is some."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooncake_core.store.allocator import Allocator
from mooncake_core.store.layout import extent_bytes
from mooncake_core.store.lengths import Lengths

START = 128
CAPACITY = 97


class Model:
    """Every byte by itself."""

    def __init__(self) -> None:
        self.owner_of: list[int | None] = [None] * CAPACITY

    def free_extents(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of the longest possible ones."""
        offset = START
        for owner, group in groupby(self.owner_of):
            length = len(list(group))
            if owner is None:
                yield offset, length
            offset += length

    def set(self, offset: int, length: int, owner: int | None) -> None:
        self.owner_of[offset - START : offset - START + length] = [owner] * length


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=120))
def test_it_does_what_a_model_of_every_byte_does(steps: list[tuple[bool, int]]) -> None:
    allocator, model = Allocator(START, CAPACITY), Model()
    live: list[tuple[int, int]] = []
    for owner, (allocate, number) in enumerate(steps):
        free = dict(model.free_extents())
        if allocate or not live:
            offset = allocator.allocate(number)
            fitting = [length for length in free.values() if length >= number]
            if not fitting:
                assert offset is None
                continue
            assert offset is not None
            assert free.get(offset) == min(fitting)  # so it is all free, and the best fit
            model.set(offset, number, owner)
            live.append((offset, number))
        else:
            offset, length = live.pop(number % len(live))
            allocator.free(offset, length)
            model.set(offset, length, None)
        free = dict(model.free_extents())
        assert allocator.largest_free == max(free.values(), default=0)
        assert allocator.free_bytes == sum(free.values())
        assert allocator.used_bytes == sum(length for _, length in live)
    for extent in live:
        allocator.free(*extent)
    assert allocator.largest_free == CAPACITY


@given(st.lists(st.integers(1, 5), max_size=8), st.data())
def test_a_rebuilt_allocator_knows_what_is_taken(lengths: list[int], data: st.DataObject) -> None:
    first = Allocator(0, 64 * 40)
    extents = [(first.allocate(64 * length), 64 * length) for length in lengths]
    kept = [(offset, length) for offset, length in extents if offset is not None and data.draw(st.booleans())]
    rebuilt = Allocator(0, 64 * 40, kept)
    assert rebuilt.used_bytes == sum(length for _, length in kept)
    while (offset := rebuilt.allocate(64)) is not None:
        assert all(offset + 64 <= start or offset >= start + length for start, length in kept)
    assert rebuilt.free_bytes == 0


@pytest.mark.parametrize("taken", [[(0, 64), (32, 64)], [(64 * 40 - 32, 64)], [(-64, 64)]])
def test_extents_that_cannot_be_are_refused(taken: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="overlaps"):
        Allocator(0, 64 * 40, taken)


@pytest.mark.parametrize("length", [0, -1, 65])
def test_what_cannot_be_is_not_allocated(length: int) -> None:
    assert Allocator(0, 64).allocate(length) is None
    assert Allocator(0, 0).allocate(length) is None


@given(st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 1 << 45)), max_size=60), st.integers(0, 1 << 45))
def test_lengths_are_found_as_in_a_sorted_list(numbers: list[int], probe: int) -> None:
    lengths = Lengths(1 << 45)
    there: list[int] = []
    for number in numbers:  # what comes a second time goes
        if number in there:
            there.remove(number)
            lengths.remove(number)
        else:
            there.append(number)
            lengths.add(number)
        there.sort()
        assert lengths.largest() == (there[-1] if there else None)
        for wanted in (probe, number, number + 1, 0):
            index = bisect_left(there, wanted)
            assert lengths.at_least(wanted) == (there[index] if index < len(there) else None)


# Utilisation. A pool evicts from the high watermark to the low one, and then puts fill it again: none of them may fail for
# want of a long enough extent while less than the high watermark is in use. (Where a single prompt takes several per cent of
# a node that several models share, one does: the share of each model moves faster than its holes can.)

HIGH, LOW = 0.95, 0.85
KEY, PARENT = "0" * 32, "1" * 32
Draw = Callable[[random.Random], int]


def block(size_bytes: int) -> int:
    return extent_bytes(KEY, PARENT, size_bytes)


def one_of(*sizes: int, weights: Sequence[float] | None = None) -> Draw:
    extents = [block(size) for size in sizes]
    return lambda rng: rng.choices(extents, weights)[0]


KIB = 1 << 10
WORKLOADS: dict[str, Draw] = {
    "one model": one_of(160 * KIB),
    "three models": one_of(40 * KIB, 160 * KIB, 1280 * KIB),
    "equal bytes of three models": one_of(40 * KIB, 160 * KIB, 1280 * KIB, weights=[32, 8, 1]),
    "powers of two": one_of(*(KIB << power for power in range(4, 11))),
    "blocks and small objects": one_of(320 * KIB, 1 * KIB, 100, weights=[0.6, 0.2, 0.2]),
    "blocks and tensors of any size": lambda rng: (
        block(256 * KIB) if rng.random() < 0.7 else block(rng.randrange(1, 256 * KIB))
    ),
}


def chains(draw: Draw, rng: random.Random) -> Iterator[list[int]]:
    """Prompts: some blocks of one size that come and go together."""
    while True:
        yield [draw(rng)] * rng.randrange(1, 30)


def first_failure(draw: Draw, *, seed: int, rounds: int, capacity: int) -> float:
    """Share in use when an allocation failed first; 1 where none did."""
    rng = random.Random(seed)
    allocator = Allocator(0, capacity)
    live: list[list[tuple[int, int]]] = []
    source = chains(draw, rng)
    for _ in range(rounds):
        while allocator.used_bytes <= HIGH * capacity:
            chain: list[tuple[int, int]] = []
            live.append(chain)
            for length in next(source):
                offset = allocator.allocate(length)
                if offset is None:
                    return allocator.used_bytes / capacity
                chain.append((offset, length))
        while allocator.used_bytes > LOW * capacity:  # in random order
            chosen = rng.randrange(len(live))
            live[chosen], live[-1] = live[-1], live[chosen]
            for extent in live.pop():
                allocator.free(*extent)
    return 1.0


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("seed", range(2))
def test_no_put_fails_before_the_high_watermark(name: str, seed: int) -> None:
    assert first_failure(WORKLOADS[name], seed=seed, rounds=12, capacity=4 << 30) >= HIGH
