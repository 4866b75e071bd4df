"""Instances that do prefill and decode, against times worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from mooncake_core.sim.coupled import CoupledInstance, CoupledSettings
from mooncake_core.sim.coupled_cluster import CoupledCluster, Router
from mooncake_core.sim.job import Job
from mooncake_core.sim.kv_memory import KVMemory
from mooncake_core.sim.simulation import Simulation
from mooncake_core.sim.timeline import Timeline
from mooncake_core.store.evictions import LRU
from tests.sim.simulated import BLOCK_TOKENS, RoundCosts, job


def coupled(
    jobs: Iterable[Job],
    *,
    instances: int = 1,
    costs: RoundCosts | None = None,
    num_blocks: int = 10_000,
    caching: bool = False,
    chunk_tokens: int = 0,
    router: Router = "least-requests",
    fail: tuple[float, str] | None = None,
) -> tuple[CoupledCluster, list[Job]]:
    costs = costs or RoundCosts()
    timeline = Timeline()
    ordered = sorted(jobs, key=lambda one: (one.arrived_at, one.number))
    simulation = Simulation(timeline, iter(ordered), report_interval_s=0.0, sample_interval_s=0.0)
    cluster = CoupledCluster(
        timeline,
        router,
        np.random.default_rng(0),
        new_instance=lambda name, ended: CoupledInstance(
            name,
            timeline,
            costs,
            KVMemory(num_blocks, BLOCK_TOKENS, LRU if caching else None),
            CoupledSettings(max_batch_tokens=chunk_tokens or 1000, max_sequences=256, chunked=chunk_tokens > 0),
            block_tokens=BLOCK_TOKENS,
            ended=ended,
        ),
        slo_s=(30.0, 0.1),
        ended=simulation.ended,
    )
    for index in range(instances):
        cluster.join(f"instance-{index}")
    if fail:
        timeline.at(fail[0], cluster.fail, fail[1])
    simulation.run(cluster)
    return cluster, ordered


def token_times(one: Job) -> list[float]:
    times = [one.first_token_at]
    for run in one.runs:
        for index in range(run.length):
            times.append(times[-1] + run.first_s + run.growth_s * index)
    return times


def test_one_request() -> None:
    _, (one,) = coupled([job(0, 5.0, 100, 3)])
    assert token_times(one) == pytest.approx([6.0, 7.0, 8.0])
    assert one.ended_at == pytest.approx(8.0)


def test_prompts_that_wait_together_are_computed_together() -> None:
    _, jobs = coupled([job(0, 0.0, 100, 2), job(1, 0.0, 200, 2)])
    assert [token_times(one) for one in jobs] == [pytest.approx([3.0, 4.0])] * 2


def test_a_prompt_stalls_those_that_decode() -> None:
    """The second comes in the step that ends at 2, and its prompt takes 2 s."""
    _, (first, second) = coupled([job(0, 0.0, 100, 4), job(1, 1.5, 200, 2)])
    assert token_times(first) == pytest.approx([1.0, 2.0, 5.0, 6.0])
    assert token_times(second) == pytest.approx([4.0, 5.0])


def test_a_chunk_makes_a_step_longer_by_less() -> None:
    """Chunks of 50 tokens beside one sequence: 0.5 s, of which 0.2 s are the weights that the step reads anyway."""
    costs = RoundCosts(step_base_s=0.2, sequence_s=0.1)
    _, (first, second) = coupled([job(0, 0.0, 100, 6), job(1, 1.5, 100, 2)], costs=costs, chunk_tokens=51)
    assert token_times(first) == pytest.approx([1.0, 1.3, 1.6, 2.2, 2.8, 3.2])
    assert token_times(second) == pytest.approx([2.8, 3.2])


def test_a_prefix_that_is_cached_is_not_computed() -> None:
    shared = list(range(9))
    jobs = [job(0, 0.0, 100, 2, shared), job(1, 5.0, 100, 2, [*shared[:5], 70, 71, 72, 73])]
    _, (_, second) = coupled(jobs, caching=True)
    assert (second.cached_tokens, second.first_token_at) == (50, pytest.approx(5.5))
    assert coupled([job(0, 0.0, 100, 2, shared), job(1, 5.0, 100, 2, shared)])[1][1].cached_tokens == 0


def test_cached_blocks_make_room_for_sequences() -> None:
    """12 blocks: the 9 of the first are evicted for the second's 115 tokens."""
    jobs = [job(0, 0.0, 100, 2, range(9)), job(1, 5.0, 110, 5), job(2, 20.0, 100, 2, range(9))]
    cluster, _ = coupled(jobs, caching=True, num_blocks=12)
    assert jobs[2].cached_tokens == 0
    assert cluster.instances["instance-0"].memory.held_tokens <= 120


def test_where_memory_is_full_the_latest_is_computed_again() -> None:
    """30 tokens of memory: after five steps there are 2 * 15, and the second gives way. It goes on when the first has
    ended at 14.2: 16 tokens are computed in 0.16 s, which gives its seventh token."""
    jobs = [job(0, 0.0, 10, 15), job(1, 0.0, 10, 15)]
    coupled(jobs, num_blocks=3)
    assert token_times(jobs[0]) == pytest.approx([0.2 + index for index in range(15)])
    assert token_times(jobs[1]) == pytest.approx([*(0.2 + index for index in range(6)), *(14.36 + i for i in range(9))])


def test_what_never_fits_is_rejected_with_the_arithmetic() -> None:
    _, (one,) = coupled([job(0, 0.0, 100, 2)], num_blocks=10)
    assert one.outcome == "rejected"
    assert "102 tokens" in one.reason
    assert "100 tokens" in one.reason


def test_an_instance_that_fails_costs_time() -> None:
    """The other one computes prompt and two tokens, 1.02 s, for the third."""
    _, (one,) = coupled([job(0, 0.0, 100, 4)], instances=2, fail=(2.5, "instance-0"))
    assert token_times(one) == pytest.approx([1.0, 2.0, 3.52, 4.52])


@pytest.mark.parametrize("router", ["least-requests", "round-robin"])
def test_requests_are_spread(router: Router) -> None:
    _, jobs = coupled([job(number, 0.1 * number, 100, 2) for number in range(4)], instances=4, router=router)
    assert {one.prefill for one in jobs} == {f"instance-{index}" for index in range(4)}
