"""A disaggregated cluster, against times worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mooncake_core.conductor.cost import Floats
from mooncake_core.conductor.policies import KVCacheCentric
from mooncake_core.conductor.policies.contract import PolicySettings, PrefillViews, RequestView, Scores
from mooncake_core.sim.gaps import Run
from mooncake_core.sim.job import Job
from mooncake_core.sim.pipeline import Pipeline
from tests.sim.simulated import RoundCosts, conducted, host, job


def gaps(one: Job) -> list[float]:
    return [run.first_s + run.growth_s * index for run in one.runs for index in range(run.length)]


def ttft(one: Job) -> float:
    return one.first_token_at - one.arrived_at


def test_one_request() -> None:
    """100 tokens take 1 s to prefill; the last of 10 layers of 10 kB follows in 1 us; two steps of 1 s."""
    (one,) = conducted([job(0, 5.0, 100, 3)]).jobs
    assert ttft(one) == pytest.approx(1.0)
    assert gaps(one) == pytest.approx([1.000001, 1.0])
    assert one.ended_at == pytest.approx(8.000001)
    assert (one.outcome, one.generated, one.prefill_s) == ("completed", 3, pytest.approx(1.0))


def test_one_token_needs_no_decode() -> None:
    (one,) = conducted([job(0, 0.0, 100, 1)]).jobs
    assert (one.outcome, one.ended_at, one.runs) == ("completed", pytest.approx(1.0), [])


def test_the_second_of_two_waits_in_the_queue() -> None:
    first, second = conducted([job(0, 0.0, 100, 2), job(1, 0.5, 100, 2)]).jobs
    assert (ttft(first), ttft(second)) == (pytest.approx(1.0), pytest.approx(1.5))


def test_what_is_urgent_goes_first() -> None:
    urgent = job(2, 0.6, 100, 1)
    urgent.priority = -1
    jobs = conducted([job(0, 0.0, 100, 1), job(1, 0.5, 100, 1), urgent]).jobs
    assert [one.first_token_at for one in jobs] == pytest.approx([1.0, 3.0, 2.0])


def test_a_slow_network_is_seen_in_the_first_gap() -> None:
    """10 kB at 1 kB/s; the first layer's are there to be sent after 0.1 s."""
    (one,) = conducted([job(0, 0.0, 100, 2)], shape=host(nic_bytes_per_s=1000.0)).jobs
    assert ttft(one) == pytest.approx(1.0)
    assert gaps(one) == pytest.approx([9.1 + 1.0])


def test_without_layerwise_sending_all_of_it_is() -> None:
    (one,) = conducted([job(0, 0.0, 100, 2)], shape=host(nic_bytes_per_s=1000.0), layerwise=False).jobs
    assert gaps(one) == pytest.approx([10.0 + 1.0])


def test_two_prefills_contend_for_the_decode_instances_nic() -> None:
    """20 kB in all at 1 kB/s."""
    jobs = conducted([job(0, 0.0, 100, 2), job(1, 0.0, 100, 2)], prefill=2, shape=host(nic_bytes_per_s=1000.0)).jobs
    assert {one.prefill for one in jobs} == {"prefill-0", "prefill-1"}
    assert [one.ended_at for one in jobs] == pytest.approx([21.1, 21.1])


def test_who_joins_in_the_middle_of_a_step_waits_for_its_end() -> None:
    """The first joins at 1, the second, whose prefill ends at 2.5, at 3: after a step of 1.1 s and in one of 1.2 s."""
    costs = RoundCosts(sequence_s=0.1)
    first, second = conducted([job(0, 0.0, 100, 5), job(1, 1.5, 100, 2)], costs=costs).jobs
    assert gaps(first) == pytest.approx([1.1, 1.1, 1.2, 1.1], abs=1e-5)
    assert gaps(second) == pytest.approx([3.2 - 2.5 + 1.2], abs=1e-5)


def test_a_prefix_that_the_local_node_has_is_not_computed() -> None:
    shared = list(range(9))
    first, second = conducted([job(0, 0.0, 100, 1, shared), job(1, 2.0, 100, 1, [*shared[:5], 77, 78, 79, 80])]).jobs
    assert (first.cached_tokens, second.cached_tokens) == (0, 50)
    assert ttft(second) == pytest.approx(0.5)


def test_what_is_computed_before_a_request_has_its_turn_counts() -> None:
    """When the second arrives nothing is stored yet."""
    shared = list(range(9))
    second = conducted([job(0, 0.0, 100, 1, shared), job(1, 0.5, 100, 1, shared)]).jobs[1]
    assert (second.cached_tokens, ttft(second)) == (90, pytest.approx(0.6))


class Elsewhere(KVCacheCentric):
    """Whoever has least of the prefix, and fetches it whatever that takes."""

    def score(self, request: RequestView, instances: PrefillViews) -> Scores:
        local, nothing = instances.local_blocks, np.zeros_like(instances.queue_s)
        return Scores(local, request.best_blocks - local, instances.queue_s, nothing, nothing)

    def rank(self, request: RequestView, scores: Scores) -> Floats:
        return scores.local_blocks.astype(np.float64)


def test_a_prefix_is_fetched_while_the_first_layers_are_computed() -> None:
    """5 blocks of 1 kB at 1 kB/s; the last of 10 layers is computed (0.05 s) when its KV has come."""
    shared = list(range(9))
    run = conducted(
        [job(0, 0.0, 100, 1, shared), job(1, 20.0, 100, 1, [*shared[:5], 77, 78, 79, 80])],
        prefill=2,
        shape=host(nic_bytes_per_s=1000.0),
        policy=Elsewhere(PolicySettings()),
    )
    first, second = run.jobs
    assert first.prefill != second.prefill
    assert (second.cached_tokens, ttft(second)) == (50, pytest.approx(5.05))
    assert second.prefill_s == pytest.approx(0.5)
    assert run.cluster.pool.node(second.prefill).match(second.keys) == [9]  # what was fetched stays


@pytest.mark.parametrize(("dram_blocks", "cached"), [(9, 0), (18, 90)])
def test_what_dram_has_no_room_for_is_gone(dram_blocks: int, cached: int) -> None:
    jobs = [job(0, 0.0, 100, 1, range(9)), job(1, 2.0, 100, 1), job(2, 4.0, 100, 1, range(9))]
    run = conducted(jobs, shape=host(dram_blocks=dram_blocks))
    assert jobs[2].cached_tokens == cached
    assert max(run.cluster.pool.node("prefill-0").sizes()) <= dram_blocks


def test_a_prefill_instance_that_fails_costs_time() -> None:
    """The prompt is begun anew on the other one after 0.5 s."""
    first = _where(0.0)
    (one,) = conducted([job(0, 0.0, 100, 2)], prefill=2, changes=[(0.5, "fail", [first.prefill])]).jobs
    assert (one.outcome, one.attempt) == ("completed", 1)
    assert ttft(one) == pytest.approx(1.5)


def test_a_decode_instance_that_fails_costs_time() -> None:
    """At 2.5 it has two tokens. Prompt and answer until then, of which 90 tokens are in the pool, are computed in 0.12 s,
    which gives the third token; two more steps."""
    first = _where(0.0)
    (one,) = conducted([job(0, 0.0, 100, 5)], decode=2, changes=[(2.5, "fail", [first.decode])]).jobs
    assert (one.outcome, one.generated) == ("completed", 5)
    assert gaps(one) == pytest.approx([1.0, 0.62, 1.0, 1.0], abs=1e-5)
    assert one.cached_tokens == 0  # of its first prefill


def test_a_prefill_instance_may_fail_when_the_kv_has_left() -> None:
    first = _where(0.0)
    (one,) = conducted([job(0, 0.0, 100, 4)], prefill=2, changes=[(2.5, "fail", [first.prefill])]).jobs
    assert (one.attempt, one.ended_at) == (0, pytest.approx(4.000001))


def test_nobody_there_for_long_is_an_outcome_too() -> None:
    changes: Sequence[tuple[float, str, Sequence[str]]] = [(0.5, "fail", ["prefill-0"])]
    (one,) = conducted([job(0, 0.0, 100, 2)], changes=changes).jobs
    assert one.outcome == "unavailable"
    assert "no prefill instance" in one.reason


def test_an_instance_comes_back_with_what_its_node_kept() -> None:
    shared = list(range(9))
    jobs = [job(0, 0.0, 100, 1, shared), job(1, 3.0, 100, 1, shared)]
    changes = [(2.0, "fail", ["prefill-0"]), (4.0, "come_back", ["prefill-0"])]
    second = conducted(jobs, changes=changes).jobs[1]
    assert (second.outcome, second.cached_tokens) == ("completed", 90)
    assert second.first_token_at >= 4.1


def test_a_host_that_fails_loses_its_blocks() -> None:
    shared = list(range(9))
    jobs = [job(0, 0.0, 100, 1, shared), job(1, 3.0, 100, 1, shared)]
    changes = [(2.0, "fail", ["prefill-0", "host"]), (4.0, "come_back", ["prefill-0"])]
    assert conducted(jobs, changes=changes).jobs[1].cached_tokens == 0


def test_an_instance_that_changes_its_role_finishes_what_it_has() -> None:
    jobs = [job(0, 0.0, 100, 2), job(1, 0.1, 100, 2), job(2, 20.0, 100, 2)]
    run = conducted(jobs, prefill=2, changes=[(0.2, "switch", ["prefill-0", "decode"])])
    assert [one.outcome for one in jobs] == ["completed"] * 3
    assert all(one.attempt == 0 for one in jobs)
    assert (list(run.cluster.members.prefill), len(run.cluster.members.decode)) == (["prefill-1"], 2)
    assert jobs[2].prefill == "prefill-1"


def test_a_pipeline_group_has_chunks_of_a_prompt_in_all_its_stages() -> None:
    """Two chunks of 0.5 s in two stages of 0.25 s each: three quarters of what one instance takes."""
    pipeline = Pipeline(RoundCosts(), stages=2, chunk_tokens=50)
    assert pipeline.run(100, 0, 0.0) == pytest.approx(0.75)
    assert pipeline.free_at == pytest.approx(0.5)  # for the next prompt
    assert pipeline.run(50, 0, 0.5) == pytest.approx(1.0)
    (one,) = conducted([job(0, 0.0, 100, 1)], stages=2, chunk_tokens=50).jobs
    assert ttft(one) == pytest.approx(0.75)


def test_a_pipeline_group_is_expected_to_be_as_fast_as_it_is() -> None:
    """Eight prompts at once, each of which keeps a group of four busy for a quarter of a second."""
    run = conducted([job(number, 0.0, 100, 1) for number in range(8)], stages=4, chunk_tokens=10)
    expected = [one.expected_ttft_s for one in run.jobs]
    assert expected == pytest.approx([0.25 * (number + 1) for number in range(8)], rel=0.01)
    for one in run.jobs:
        assert ttft(one) == pytest.approx(one.expected_ttft_s, abs=0.25), (
            "the last stages of the first chunk come on top"
        )
    assert run.cluster.busy_s()["prefill-0"] == pytest.approx(2.0)


def test_runs_are_what_a_request_saw() -> None:
    (one,) = conducted([job(0, 0.0, 100, 30)]).jobs
    assert sum(run.length for run in one.runs) == 29
    assert all(isinstance(run, Run) for run in one.runs)


def _where(arrived_at: float) -> Job:
    """The first request, where nothing fails: with the same seed it goes to the same instances."""
    return conducted([job(0, arrived_at, 100, 5)], prefill=2, decode=2).jobs[0]
