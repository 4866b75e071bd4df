"""Space and eviction cost the same however much there is: `scripts/acceptance space`."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable

import pytest

from mooncake_core.store.allocator import Allocator
from mooncake_core.store.eviction import Eviction
from mooncake_core.store.evictions import LFU, LRU, S3FIFO, LengthAware, Sieve
from mooncake_core.store.layout import extent_bytes

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
COUNTS = (1_000, 100_000, 1_000_000)
STEPS = 50_000
MOST_APART = 4.0
"""A dictionary of a million entries does not fit into the processor's caches: the same steps take longer there."""
LENGTHS = [extent_bytes("0" * 32, "1" * 32, size) for size in (40 << 10, 160 << 10, 320 << 10)]


def check(name: str, unit: str, cost_s: Callable[[int], float]) -> None:
    """CPU time per step at each count; no more than so far apart."""
    costs = [cost_s(count) for count in COUNTS]
    shown = ", ".join(f"{cost * 1e6:.2f} µs at {count:,}" for count, cost in zip(COUNTS, costs, strict=True))
    print(f"\n{name}: {shown} {unit}")
    assert max(costs) < MOST_APART * costs[0]


def fragmented(count: int, rng: random.Random) -> tuple[Allocator, list[tuple[int, int]]]:
    """So many free extents, and what lies between them."""
    lengths = [rng.choice(LENGTHS) for _ in range(2 * count)]
    allocator = Allocator(0, sum(lengths))
    taken = [(allocator.allocate(length) or 0, length) for length in lengths]
    for extent in taken[::2]:
        allocator.free(*extent)
    return allocator, taken[1::2]


def test_the_allocator() -> None:
    def cost_s(count: int) -> float:
        rng = random.Random(1)
        allocator, taken = fragmented(count, rng)
        plan = [(rng.random(), rng.choice(LENGTHS)) for _ in range(STEPS)]
        begun = time.process_time()
        for place, length in plan:
            number = int(place * len(taken))
            taken[number], taken[-1] = taken[-1], taken[number]
            allocator.free(*taken.pop())
            offset = allocator.allocate(length)
            if offset is not None:
                taken.append((offset, length))
        return (time.process_time() - begun) / STEPS

    check("allocator, one free and one allocate", "free extents", cost_s)


def test_memory_of_the_allocator() -> None:
    tracemalloc.start()
    try:
        allocator, taken = fragmented(100_000, random.Random(1))
        del taken
        before, _ = tracemalloc.get_traced_memory()
        del allocator
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    each = (before - after) / 100_000
    print(f"\nallocator: {each:.0f} bytes per free extent, none for what is taken")
    assert each < 500


@pytest.mark.parametrize("policy", [LRU, LFU, LengthAware, S3FIFO, Sieve])
def test_an_eviction_policy(policy: type[Eviction]) -> None:
    def cost_s(count: int) -> float:
        rng = random.Random(1)
        made = policy()
        for number in range(count):
            made.added(str(number), size_bytes=1, position=number % 100)
        plan = [str(int(rng.random() ** 3 * count)) for _ in range(STEPS)]
        gone: set[str] = set()
        begun = time.process_time()
        for number, key in enumerate(plan):
            if key not in gone:
                made.touched(key)
            named = made.name_next()
            assert named is not None
            made.removed(named)
            gone.add(named)
            made.added(f"new{number}", size_bytes=1, position=number % 100)
        return (time.process_time() - begun) / STEPS

    check(f"{policy.__name__}, one read, one eviction and one put", "objects", cost_s)
