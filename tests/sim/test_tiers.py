"""Disks below the pool's DRAM: what a prefill waits for, what it computes instead, and that the Conductor knows it before."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooncake_core.conductor import events as e
from mooncake_core.kvcache.prefix_index import PrefixIndex
from mooncake_core.sim.block_cache import BlockCache
from mooncake_core.sim.pool import Pool, Source
from mooncake_core.store.evictions import LRU
from mooncake_core.wire.messages.tiering import LOWER, Tier
from tests.sim.simulated import Run, conducted, host, job
from tests.sim.test_conducted import ttft

KEYS = [number.to_bytes(16, "big") for number in range(12)]


@pytest.mark.parametrize(
    ("dram_blocks", "ssd_bytes_per_s", "cached", "loaded", "took_s"),
    [
        (9, 20_000.0, 90, 90, 0.45 + 0.1),  # nine blocks of 1 kB are loaded, ten tokens computed
        (9, 5_000.0, 0, 0, 1.0),  # a block takes 0.2 s to load, and 0.1 s to compute
        (13, 20_000.0, 90, 50, 0.25 + 0.1),  # the first four stayed in DRAM
        (13, 5_000.0, 40, 0, 0.6),
    ],
)
def test_blocks_on_the_disk_are_loaded_where_that_pays(
    dram_blocks: int, ssd_bytes_per_s: float, cached: int, loaded: int, took_s: float
) -> None:
    shared = range(9)  # read twice before others come: its tail was used longest ago
    jobs = [job(0, 0.0, 100, 1, shared), job(1, 2.0, 100, 1, shared), job(2, 4.0, 100, 1), job(3, 6.0, 100, 1, shared)]
    shape = host(dram_blocks=dram_blocks, ssd_blocks=100, ssd_bytes_per_s=ssd_bytes_per_s)
    run = conducted(jobs, shape=shape)
    last = run.jobs[3]
    assert (last.cached_tokens, last.loaded_tokens, ttft(last)) == (cached, loaded, pytest.approx(took_s))
    assert last.expected_ttft_s == pytest.approx(took_s)
    assert_index_is_right(run)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8)), min_size=2, max_size=20),
    st.integers(1, 20),
    st.integers(0, 20),
    st.sampled_from([5_000.0, 9_000.0, 20_000.0]),
)
@settings(max_examples=50, deadline=None)
def test_an_idle_instance_takes_as_long_as_predicted(
    prompts: list[tuple[int, int]], dram_blocks: int, ssd_blocks: int, ssd_bytes_per_s: float
) -> None:
    """Of some families of prompts."""
    jobs = [
        job(number, 100.0 * number, 10 * length + 1, 1, [100 * family + index for index in range(length)])
        for number, (family, length) in enumerate(prompts)
    ]
    run = conducted(jobs, shape=host(dram_blocks=dram_blocks, ssd_blocks=ssd_blocks, ssd_bytes_per_s=ssd_bytes_per_s))
    for one in run.jobs:
        assert one.expected_ttft_s == pytest.approx(ttft(one))
    assert_index_is_right(run)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8), st.floats(0, 2)), min_size=2, max_size=30),
    st.integers(1, 12),
    st.integers(1, 12),
)
@settings(max_examples=50, deadline=None)
def test_the_conductor_knows_the_tier_of_every_block(
    prompts: list[tuple[int, int, float]], dram_blocks: int, ssd_blocks: int
) -> None:
    at, jobs = 0.0, []
    for number, (family, length, passed) in enumerate(prompts):
        at += passed
        jobs.append(job(number, at, 10 * length + 1, 1, [100 * family + index for index in range(length)]))
    shape = host(dram_blocks=dram_blocks, ssd_blocks=ssd_blocks, ssd_bytes_per_s=20_000.0, nic_bytes_per_s=30_000.0)
    run = conducted(jobs, prefill=3, shape=shape, changes=[(5.0, "fail", ["prefill-0", True])])
    assert all(one.outcome == "completed" for one in run.jobs)
    assert_index_is_right(run)


def assert_index_is_right(run: Run) -> None:
    """What the Conductor was told is how it is."""
    pool, index = run.cluster.pool, run.cluster.conductor._prefill.index
    held: dict[bytes, dict[str, bool]] = {}
    for name in pool._nodes:
        cache = pool.node(name)
        for key in cache.keys():  # noqa: SIM118
            held.setdefault(key, {})[name] = cache.tier_of(key) > 0
    assert len(index) == len(held)
    for key, nodes in held.items():
        assert set(index.names(index.holders(key))) == set(nodes)
        assert set(index.names(index._lower.get(key, 0))) == {name for name, lower in nodes.items() if lower}
    assert set(index._lower) <= set(held)


def pool_of(**nodes: tuple[int, int]) -> Pool:
    """Nodes with so many leading blocks: of how many the tail lies below DRAM."""
    pool = Pool(lambda event: None)
    for name, (dram, lower) in nodes.items():
        pool.add_node(name, BlockCache([("dram", dram), ("ssd", 100)], LRU))
        pool.store(name, KEYS[: dram + lower], 0.0)
        pool.use(name, KEYS[:dram], 1.0)
        held = [pool.node(name).tier_of(key) for key in KEYS]
        assert held == [0] * dram + [1] * lower + [2] * (len(KEYS) - dram - lower)
    return pool


def test_what_another_node_has_in_dram_is_read_from_there() -> None:
    pool = pool_of(own=(2, 4), other=(4, 4))
    found = pool.prefix("own", KEYS, matched=8)
    assert (found.blocks, found.local, found.loaded) == (8, 6, 2)
    assert found.sources == [Source("other", False, KEYS[2:4]), Source("other", True, KEYS[6:8])]
    third = pool_of(own=(2, 0), slow=(0, 8), fast=(5, 0)).prefix("own", KEYS, matched=8)
    assert third.sources == [Source("fast", False, KEYS[2:5]), Source("slow", True, KEYS[5:8])]


def test_more_than_the_conductor_counted_on_is_used_where_it_is_in_dram() -> None:
    pool = pool_of(own=(4, 4))
    assert pool.prefix("own", KEYS, matched=0)[:3] == (4, 4, 0)
    assert pool.prefix("own", KEYS, matched=6)[:3] == (6, 6, 2)


def test_each_move_between_tiers_is_told() -> None:
    told: list[tuple[Tier | None, int]] = []

    def changed(event: e.BlocksStored | e.BlocksRemoved) -> None:
        tier = event.tier if isinstance(event, e.BlocksStored) else None
        told.append((tier, len(event.keys)))

    pool, index = Pool(changed), PrefixIndex()
    pool.add_node("a", BlockCache([("dram", 3), ("ssd", 4)], LRU))
    pool.store("a", KEYS[:3], 0.0)
    pool.store("a", KEYS[3:6], 1.0)
    pool.use("a", KEYS[:1], 2.0)
    pool.store("a", KEYS[6:9], 3.0)
    pool.clear("a")
    index.stored("a", KEYS[:1])
    assert told == [
        ("dram", 3),
        ("dram", 3),
        (LOWER, 3),
        ("dram", 1),
        (LOWER, 1),
        ("dram", 3),
        (None, 2),
        (LOWER, 3),
        (None, 7),
    ]
