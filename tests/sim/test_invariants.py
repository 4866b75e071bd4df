"""What holds whatever comes: every request ends once, tokens and time add up, memory stays within its limits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooncake_core.sim.job import Job
from tests.sim.simulated import BLOCK_TOKENS, RoundCosts, conducted, host, job
from tests.sim.test_coupled import coupled

requests = st.lists(
    st.tuples(
        st.floats(0, 20),
        st.integers(1, 300),
        st.integers(1, 40),
        st.integers(0, 3),  # family: requests of one share as many blocks as they both have
    ),
    min_size=1,
    max_size=25,
)
instances = ("prefill-0", "prefill-1", "decode-0", "decode-1")
changes = st.lists(
    st.one_of(
        st.tuples(st.floats(0, 30), st.just("fail"), st.tuples(st.sampled_from(instances))),
        st.tuples(st.floats(0, 30), st.just("come_back"), st.tuples(st.sampled_from(instances))),
        st.tuples(
            st.floats(0, 30),
            st.just("switch"),
            st.tuples(st.sampled_from(instances), st.sampled_from(["prefill", "decode"])),
        ),
    ),
    max_size=6,
)
COSTS = RoundCosts(step_base_s=0.1, sequence_s=0.02, context_s=1e-4)


def jobs_of(drawn: list[tuple[float, int, int, int]]) -> list[Job]:
    return [
        job(number, at, prompt, output, [1_000_000 * (family + 1) + index for index in range(40)])
        for number, (at, prompt, output, family) in enumerate(drawn)
    ]


def check(one: Job) -> None:
    assert one.outcome in ("completed", "rejected", "unavailable")
    assert one.ended_at >= one.arrived_at
    if one.outcome != "completed":
        return
    assert one.generated == one.output_tokens
    assert one.arrived_at <= one.first_token_at <= one.ended_at
    assert sum(run.length for run in one.runs) == one.output_tokens - 1
    total = sum(run.total_s(run.length) for run in one.runs)
    assert one.first_token_at + total == pytest.approx(one.ended_at)
    assert all(run.first_s > 0 and run.growth_s >= 0 for run in one.runs)
    assert 0 <= one.cached_tokens < one.prompt_tokens


@settings(max_examples=60, deadline=None)
@given(
    drawn=requests, planned=changes, nic=st.sampled_from([1e3, 1e9]), layerwise=st.booleans(), stages=st.integers(1, 3)
)
def test_a_disaggregated_cluster(
    drawn: list[tuple[float, int, int, int]],
    planned: list[tuple[float, str, Any]],
    nic: float,
    layerwise: bool,
    stages: int,
) -> None:
    run = conducted(
        jobs_of(drawn),
        prefill=2,
        decode=2,
        costs=COSTS,
        shape=host(nic_bytes_per_s=nic, dram_blocks=30, hbm_blocks=120),
        stages=stages,
        chunk_tokens=70,
        changes=planned,
        samples_s=1.0,
        layerwise=layerwise,
    )
    assert sorted(run.simulation.records.numbers) == list(range(len(drawn)))
    for one in run.jobs:
        check(one)
    cluster = run.cluster
    assert cluster.num_jobs == 0
    for name in cluster.members.names():
        assert max(cluster.pool.node(name).sizes()) <= 30
        assert cluster.pool.node(name).num_pinned() == 0
        assert cluster.network.utilisation(name) == 0.0
    assert all(one.free_blocks == one.num_blocks for one in cluster.members.decode.values())
    assert cluster.conductor.check() == []
    times = [sample.at_s for sample in run.simulation.samples]
    assert times == sorted(times)


@settings(max_examples=60, deadline=None)
@given(drawn=requests, caching=st.booleans(), chunk_tokens=st.sampled_from([0, 50]), num_blocks=st.integers(20, 60))
def test_coupled_instances(
    drawn: list[tuple[float, int, int, int]], caching: bool, chunk_tokens: int, num_blocks: int
) -> None:
    cluster, jobs = coupled(
        jobs_of(drawn), instances=2, costs=COSTS, num_blocks=num_blocks, caching=caching, chunk_tokens=chunk_tokens
    )
    for one in jobs:
        check(one)
    for instance in cluster.instances.values():
        memory = instance.memory
        assert memory.used_tokens == 0
        assert memory.most_used_tokens <= memory.capacity_tokens == num_blocks * BLOCK_TOKENS
