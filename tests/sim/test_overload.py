"""Overload: who is turned away at which stage, in a simulation (technical report, section 7)."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mooncake_core.conductor.admission import Baseline, Early, LearnedLengths, Predictive
from mooncake_core.conductor.admission.contract import Admission, AdmissionSettings
from tests.sim.simulated import RoundCosts, Run, conducted, job

STEP_S = 0.05


def overloaded(admission: type[Admission]) -> Run:
    """Prefills of 4 s, and answers that decode for 5 s; six may decode at a time, and more come than can."""
    rng = random.Random(0)
    at, jobs = 0.0, []
    for number in range(300):
        at += rng.expovariate(2.0)
        jobs.append(job(number, at, 400, 100))
    costs = RoundCosts(step_base_s=0.02, sequence_s=0.005)
    settings = AdmissionSettings(ttft_slo_s=20.0, tbt_slo_s=STEP_S)
    return conducted(jobs, prefill=12, costs=costs, admission=admission(settings), samples_s=0.5, max_tokens=200)


def stages(run: Run) -> Counter[tuple[str, str]]:
    return Counter((one.stage, one.cause) for one in run.jobs if one.outcome == "rejected")


@pytest.mark.parametrize("admission", [Baseline, Early, Predictive, LearnedLengths])
def test_no_decode_instance_is_made_slower_than_the_objective(admission: type[Admission]) -> None:
    run = overloaded(admission)
    assert Counter(one.outcome for one in run.jobs).keys() == {"completed", "rejected"}
    assert max(sample.decode_load * 0.1 for sample in run.simulation.samples) <= STEP_S + 1e-9
    assert run.cluster.conductor.num_requests == 0
    assert run.cluster.conductor.check() == []


def test_baseline_computes_many_prompts_in_vain_and_prediction_few() -> None:
    found = {kind: stages(overloaded(kind)) for kind in (Baseline, Early, Predictive, LearnedLengths)}
    assert found[Baseline]["arrival", "tbt"] == 0
    wasted = {kind: found[kind]["decode", "tbt"] for kind in found}
    assert wasted[Baseline] > 1.5 * wasted[Early] > 3 * wasted[Predictive]
    assert wasted[LearnedLengths] <= wasted[Predictive]


def test_early_rejection_makes_the_decode_load_swing_and_prediction_damps_it() -> None:
    deviations = {}
    for kind in (Early, Predictive):
        loads = [sample.decode_load for sample in overloaded(kind).simulation.samples if 10 < sample.at_s < 140]
        mean = sum(loads) / len(loads)
        deviations[kind] = (sum((load - mean) ** 2 for load in loads) / len(loads)) ** 0.5
    assert deviations[Early] > 1.5 * deviations[Predictive]
