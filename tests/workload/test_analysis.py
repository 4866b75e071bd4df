"""Hit ratios of traces, against caches that are simulated block by block."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.errors import UsageError
from mooncake_core.workload.analysis import analyse, default_capacities
from mooncake_core.workload.blocks import ids_in_blocks
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.stack_distances import stack_distances

BLOCK = 10


def trace(seed: int, count: int) -> list[TraceRequest]:
    """Prompts that go on from earlier ones."""
    rng = random.Random(seed)
    chains: list[tuple[int, ...]] = [()]
    fresh, made = 0, []
    for number in range(count):
        shared = rng.choice(chains[-8:] + chains[:2])
        shared = shared[: rng.randrange(len(shared) + 1)]
        own = rng.randrange(1, 6)
        ids = (*shared, *range(fresh, fresh + own))
        fresh += own
        tokens = len(ids) * BLOCK - rng.randrange(BLOCK)
        chains.append(ids if tokens % BLOCK == 0 else ids[:-1])
        made.append(
            TraceRequest(arrival_s=number, input_tokens=tokens, output_tokens=1, block_ids=ids, block_tokens=BLOCK)
        )
    return made


def lru(requests: list[TraceRequest], capacity: int) -> tuple[float, float]:
    """Shares of blocks and tokens: each prompt is looked up, then used from its end to its beginning."""
    cache: OrderedDict[int, None] = OrderedDict()
    blocks = tokens = 0
    for request in requests:
        hit = next((n for n, name in enumerate(request.block_ids) if name not in cache), len(request.block_ids))
        blocks += hit
        tokens += request.tokens_of(hit)
        for name in reversed(request.block_ids):
            cache[name] = None
            cache.move_to_end(name)
            while len(cache) > capacity:
                cache.popitem(last=False)
    return blocks / sum(-(-r.input_tokens // BLOCK) for r in requests), tokens / sum(r.input_tokens for r in requests)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 60))
def test_one_pass_finds_what_a_cache_of_each_size_has(seed: int, count: int) -> None:
    requests = trace(seed, count)
    capacities = [0, 1, 2, 3, 7, 20, 1000]
    summary = analyse(requests, capacities)
    for found in summary.lru:
        assert (found.blocks, found.tokens) == pytest.approx(lru(requests, found.capacity_blocks))
    assert (summary.unbounded.blocks, summary.unbounded.tokens) == pytest.approx(lru(requests, 10**6))
    later = requests[len(requests) // 2 :]
    warm = sum(r.input_tokens for r in requests) * summary.unbounded.tokens
    cold = lru(requests[: len(requests) // 2], 10**6)[1] if count > 1 else 0.0
    early_tokens = sum(r.input_tokens for r in requests[: len(requests) // 2])
    assert summary.unbounded.tokens_last_half * sum(r.input_tokens for r in later) == pytest.approx(
        warm - cold * early_tokens
    )


@given(uses=st.lists(st.integers(0, 12), max_size=80))
def test_stack_distances_count_different_blocks(uses: list[int]) -> None:
    expected = []
    for index, block in enumerate(uses):
        last = next((i for i in range(index - 1, -1, -1) if uses[i] == block), None)
        expected.append(0 if last is None else len(set(uses[last:index])))
    assert stack_distances(np.array(uses, dtype=np.int64)).tolist() == expected


def test_a_worked_example() -> None:
    ids = [(0, 1, 2), (0, 1, 3), (4,), (0, 1, 2)]
    requests = [
        TraceRequest(arrival_s=at, input_tokens=25 if len(names) > 1 else 8, output_tokens=4, block_ids=names, block_tokens=10)
        for at, names in enumerate(ids)
    ]  # fmt: skip
    found = analyse(requests, [3, 4, 5])
    assert (found.requests, found.blocks, found.unique_blocks) == (4, 10, 5)
    assert found.unbounded.blocks == 0.5  # 0 and 1 of the second, all of the last
    assert found.unbounded.tokens == (20 + 25) / 83
    assert found.unbounded.tokens_last_half == 25 / 33
    # Before the last one the stack is 4, 0, 1, 3, 2.
    assert [entry.blocks for entry in found.lru] == [0.4, 0.4, 0.5]
    assert (found.span_s, found.requests_per_s, found.input_tokens.longest) == (3.0, 1.0, 25)


def test_traces_that_name_no_blocks_and_traces_of_two_sizes() -> None:
    bare = [TraceRequest(arrival_s=at, input_tokens=100, output_tokens=4) for at in range(3)]
    found = analyse(bare)
    assert (found.unique_blocks, found.unbounded.tokens, found.lru) == (0, 0.0, [])
    with pytest.raises(
        UsageError, match="expected blocks of 512 tokens as in the first request, request 2 has blocks of 16"
    ):
        analyse([bare[0], TraceRequest(arrival_s=0, input_tokens=1, output_tokens=1, block_tokens=16)])
    with pytest.raises(UsageError, match="found none"):
        analyse([])


def test_capacities_of_the_table() -> None:
    assert default_capacities(0) == []
    assert default_capacities(1) == [1]
    assert default_capacities(40) == [1, 2, 3, 5, 7, 10, 15, 20, 30, 40]
    assert default_capacities(182_790)[0] == 200
    assert default_capacities(182_790)[-2:] == [150_000, 182_790]


@given(seed=st.integers(0, 10**6), parts=st.integers(1, 4), whole=st.integers(1, 4))
def test_blocks_of_another_size_share_what_they_can(seed: int, parts: int, whole: int) -> None:
    requests = trace(seed, 12)
    smaller = 5 if parts > 2 else 2
    for size in (smaller, BLOCK * whole):
        renamed = [ids_in_blocks(request, size) for request in requests]
        for one, mine in zip(requests, renamed, strict=True):
            assert len(mine) == -(-one.input_tokens // size)
            for two, others in zip(requests, renamed, strict=True):
                same = _common(one.block_ids, two.block_ids)
                if same < min(len(one.block_ids), len(two.block_ids)):
                    assert _common(mine, others) == same * BLOCK // size
    with pytest.raises(UsageError, match="blocks of 10 tokens: expected a part or a multiple of that"):
        ids_in_blocks(requests[0], 7)


def _common(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
