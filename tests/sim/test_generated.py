"""Loads that are generated, and what they are measured by."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from mooncake_cli.main import run as run_command
from mooncake_core.bench.trace import TraceRun
from mooncake_core.errors import ConfigError, UsageError
from mooncake_core.sim.generated import generate_jobs
from mooncake_core.sim.load import load_simulation
from mooncake_core.sim.settings import WorkloadSettings
from mooncake_core.workload.trace import TraceSource

ROOT = Path(__file__).parent.parent.parent
BASE = f"model: {ROOT}/configs/models/llama2-70b.yaml\nhardware: {ROOT}/configs/hardware/a800-x8.yaml\n"
TEXT = """
workloads: [{name: long, requests: 40, input_tokens: 16384, ttft_factor: 10, tbt_factor: 5}]
systems:
  - {name: apart, workload: long, prefill: 3, decode: 1}
  - {name: coupled, workload: long, kind: coupled, instances: 4}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "simulation.yaml"
    path.write_text(BASE + text)
    return path


def test_half_of_each_prompt_is_shared_by_its_family() -> None:
    workload = WorkloadSettings(input_tokens=1024, shared=0.5, families=4, requests=200, rate=2.0)
    jobs = list(generate_jobs(workload, block_tokens=64, seed=1))
    assert {len(job.keys) for job in jobs} == {15}  # a token of the last block is always computed
    prefixes = {tuple(job.keys[:8]) for job in jobs}
    assert len(prefixes) == 4
    own = [key for job in jobs for key in job.keys[8:]]
    assert len(set(own)) == len(own) == 200 * 7
    assert not {key for prefix in prefixes for key in prefix} & set(own)
    assert all(earlier.arrived_at < later.arrived_at for earlier, later in pairwise(jobs))
    assert 80 < jobs[-1].arrived_at < 120  # 200 at 2 per second


def test_tenants_have_their_parts_of_the_requests() -> None:
    jobs = list(generate_jobs(WorkloadSettings(requests=400, tenants={"a": 3, "b": 1}), block_tokens=512, seed=1))
    assert 270 < sum(job.tenant == "a" for job in jobs) < 330
    assert {job.tenant for job in jobs} == {"a", "b"}


def test_a_tenant_that_floods_the_cluster_takes_little_from_another(tmp_path: Path) -> None:
    text = """
slo: {ttft: 30s, tbt: 100ms}
workloads: [{name: flooded, requests: 800, input_tokens: 16384, output_tokens: 64, rate: 4, tenants: {flood: 19, steady: 1}}]
systems:
  - {name: first-come, workload: flooded, prefill: 1, decode: 1, admission: early}
  - {name: fair, workload: flooded, prefill: 1, decode: 1, admission: early, fairness: {}}
"""
    unfair, fair = TraceRun(load_simulation(write(tmp_path, text)), None).execute().report.systems
    assert unfair.tenants["steady"].goodput_ratio < 0.4
    assert fair.tenants["steady"].goodput_ratio > 0.9
    assert fair.goodput > 0.9 * unfair.goodput
    assert fair.rejected_for.keys() == {"arrival: share", "arrival: ttft"} or fair.rejected_for.keys() == {
        "arrival: share"
    }
    assert sum(tenant.requests for tenant in fair.tenants.values()) == fair.requests


def test_another_speed_brings_the_same_requests() -> None:
    workload = WorkloadSettings(requests=20)
    slow = list(generate_jobs(workload, block_tokens=512, seed=3))
    fast = list(generate_jobs(workload, block_tokens=512, seed=3, speed=4.0))
    assert [job.keys for job in slow] == [job.keys for job in fast]
    assert [job.arrived_at for job in fast] == pytest.approx([job.arrived_at / 4 for job in slow])
    other = list(generate_jobs(workload, block_tokens=512, seed=4))
    assert [job.arrived_at for job in other] != [job.arrived_at for job in slow]


def test_systems_serve_their_workload_within_its_objectives(tmp_path: Path) -> None:
    run = TraceRun(load_simulation(write(tmp_path, TEXT)), None)
    report = run.execute().report
    assert [(system.name, system.completed) for system in report.systems] == [("apart", 40), ("coupled", 40)]
    assert report.trace["requests"] == 40
    apart, coupled = report.systems
    assert apart.hit_ratio.tokens > 0.2
    assert apart.goodput == 40
    assert coupled.goodput < 40  # prompts stall those that decode for longer than five lone steps
    capacities = run.capacities(0.9)
    assert capacities[0].tbt_s[0] == pytest.approx(5 * 0.0134, rel=0.05)
    assert capacities[0].requests_per_s[0] > 2 * capacities[1].requests_per_s[0]


def test_a_trace_is_wanted_where_there_is_no_workload_and_only_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="system mooncake has no workload"):
        TraceRun(load_simulation(write(tmp_path, "")), None)
    with pytest.raises(UsageError, match="leave TRACE out"):
        TraceRun(load_simulation(write(tmp_path, TEXT)), TraceSource(str(tmp_path / "trace.jsonl")))
    unknown = TEXT.replace("workload: long, prefill", "workload: longer, prefill")
    with pytest.raises(
        ConfigError, match=r"systems.0.workload: expected one of the file's workloads \(long\), got longer"
    ):
        load_simulation(write(tmp_path, unknown))


def test_the_json_has_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "trace", "--config", str(write(tmp_path, TEXT)), "--json", "-"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema_version"] == 1
    assert {"path", "requests", "speed", "seed"} <= set(shown["trace"])
    for system in shown["systems"]:
        counts = {"requests", "completed", "goodput", "goodput_ratio"}
        assert {"name", *counts, "prefill_gpu_s", "wall_s", "peak_rss_bytes"} <= set(system)
        assert set(system["rejected"]) == {"arrival", "decode"}
        assert set(system["ttft_s"]) == set(system["tbt_s"]) == {"mean", "p50", "p90", "p99"}
        assert set(system["hit_ratio"]) == {"blocks", "tokens"}
