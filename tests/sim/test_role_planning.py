"""Roles follow a load that changes: first long answers, then long prompts."""

from __future__ import annotations

import random

from mooncake_core.conductor.balance import Balance
from mooncake_core.conductor.role_planning import RolePlanner, RoleSettings
from mooncake_core.sim.job import Job
from tests.sim.simulated import RoundCosts, Run, conducted, host, job

TTFT_S, TBT_S = 5.0, 0.06


def changing_load(*, planned: bool) -> Run:
    """Until 300 s, 3 requests a second with prompts of 0.2 s and answers of 100 steps; then 1.1 with prompts of 3 s. A decode
    instance has memory for ten."""
    rng = random.Random(0)
    jobs: list[Job] = []
    at = 0.0
    while at < 600:
        first = at < 300
        at += rng.expovariate(3.0 if first else 1.1)
        jobs.append(job(len(jobs), at, 20 if first else 300, 100 if first else 5))
    planner = RolePlanner(RoleSettings(patience_s=10, rest_s=10))
    return conducted(
        jobs,
        prefill=4,
        decode=2,
        costs=RoundCosts(step_base_s=0.02, sequence_s=0.004),
        shape=host(hbm_blocks=400),
        balance=Balance(planner, TTFT_S, TBT_S) if planned else None,
        reports_s=1.0,
    )


def served_well(run: Run) -> float:
    good = [
        one
        for one in run.jobs
        if one.outcome == "completed"
        and one.first_token_at - one.arrived_at <= TTFT_S
        and max((gap.first_s for gap in one.runs[1:]), default=0.0) <= TBT_S
    ]
    return len(good) / len(run.jobs)


def test_instances_change_their_roles_and_back_and_more_is_served_well() -> None:
    fixed, planned = changing_load(planned=False), changing_load(planned=True)
    assert len(fixed.cluster.members.prefill) == 4
    assert {one.outcome for one in planned.jobs} <= {"completed", "rejected"}
    assert all(one.attempt == 0 for one in planned.jobs), "drained: nothing was lost"
    moved = {one.prefill for one in planned.jobs} & {one.decode for one in planned.jobs}
    assert moved, "somebody had both roles"
    assert len(planned.cluster.members.prefill) >= 4, "and is back"
    assert served_well(planned) > served_well(fixed) + 0.1
    assert planned.cluster.conductor.check() == []


def test_an_even_load_changes_nothing() -> None:
    jobs = [job(number, 1.0 * number, 100, 20) for number in range(200)]
    balance = Balance(RolePlanner(RoleSettings(patience_s=5, rest_s=5)), TTFT_S, TBT_S)
    run = conducted(jobs, prefill=2, decode=2, costs=RoundCosts(step_base_s=0.02), balance=balance, reports_s=1.0)
    assert sorted(run.cluster.members.prefill) == ["prefill-0", "prefill-1"]
