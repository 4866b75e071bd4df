"""A live cluster's YAML as a simulation."""

from __future__ import annotations

from pathlib import Path

import pytest

from mooncake_core.errors import ConfigError, UsageError
from mooncake_core.sim.job import Job
from mooncake_core.sim.jobs import make_jobs
from mooncake_core.sim.load import load_simulation
from mooncake_core.sim.systems import simulate
from mooncake_core.workload.request import TraceRequest

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_its_engines_take_what_their_options_say(tmp_path: Path) -> None:
    options = "options: {speed: 2, cost: {prefill_base_s: 0.4, prefill_per_token_s: 0.01, prefill_per_token2_s: 0, "
    options += "step_base_s: 2, step_per_sequence_s: 0, step_per_context_token_s: 0}}"
    instance = f"[{{count: 2, engine: {{kind: mock, chunk_tokens: 100, {options}}}}}]"
    setup = load_simulation(write(tmp_path, f"cluster: slow\nprefill: {instance}\ndecode: {instance}\n"))
    system = setup.config.systems[0]
    assert (system.name, system.prefill, system.decode, system.admission) == ("slow", 2, 2, "predictive")
    done = simulate(setup, system, iter([Job(number=0, arrived_at=0.0, prompt_tokens=150, output_tokens=3, keys=[])]))
    row = done.records.rows()[0]
    # Two chunks of half of 0.4 s each, 150 tokens of 5 ms; then steps of 1 s.
    assert row["ttft_s"] == pytest.approx(0.2 + 0.2 + 0.75)
    assert row["tbt_mean_s"] == pytest.approx(1.0, abs=0.01)


def test_a_calibrated_cost_is_what_the_scheduler_expects_and_not_what_it_takes(tmp_path: Path) -> None:
    options = "cost: {prefill_per_token: 20ms}, options: {cost: {prefill_base_s: 0, prefill_per_token_s: 0.01, "
    instance = f"[{{engine: {{kind: mock, {options}prefill_per_token2_s: 0}}}}}}}}]"
    setup = load_simulation(write(tmp_path, f"prefill: {instance}\ndecode: {instance}\n"))
    jobs = iter([Job(number=0, arrived_at=0.0, prompt_tokens=150, output_tokens=3, keys=[])])
    row = simulate(setup, setup.config.systems[0], jobs).records.rows()[0]
    assert row["expected_ttft_s"] == pytest.approx(3.0)
    assert row["ttft_s"] == pytest.approx(1.5)


def test_tiers_of_its_nodes_hold_what_dram_has_no_room_for(tmp_path: Path) -> None:
    options = "{cost: {load_bytes_per_s: 1e6}}"
    node = "{capacity: 64KiB, tiers: [{path: ssd, capacity: 1MiB}, {path: disk, capacity: 2MiB}]}"
    mock = f"[{{engine: {{kind: mock, options: {options}}}, local_node: {node}}}]"
    setup = load_simulation(write(tmp_path, f"prefill: {mock}\ndecode: {mock}\n"))
    assert (setup.host.ssd_blocks, setup.host.ssd_bytes_per_s) == (32 * setup.host.dram_blocks, 1e6)
    assert setup.hint.load_bytes_per_s == 1e6


def test_limits_of_the_scheduler_are_its_objectives(tmp_path: Path) -> None:
    mock = "[{engine: {kind: mock}}]"
    text = f"prefill: {mock}\ndecode: {mock}\nscheduler: {{ttft_slo: 3s, policy: least-loaded}}\n"
    config = load_simulation(write(tmp_path, text)).config
    assert config.slo.ttft == 3.0
    assert (config.systems[0].policy, config.systems[0].admission) == ("least-loaded", "predictive")


def test_what_cannot_be_simulated_is_named(tmp_path: Path) -> None:
    mock = "[{engine: {kind: mock}}]"
    with pytest.raises(ConfigError, match="prefill: expected engines of kind mock, whose times are known, got torch"):
        load_simulation(CONFIGS / "1p1d.yaml")
    with pytest.raises(ConfigError, match="store: nodes of their own are not simulated"):
        load_simulation(write(tmp_path, f"prefill: {mock}\ndecode: {mock}\nstore: [{{}}]\n"))
    other = "[{engine: {kind: mock, kv_memory: 1MiB}}]"
    with pytest.raises(ConfigError, match="the same kv_memory and options, got 2 kinds"):
        load_simulation(write(tmp_path, f"prefill: {mock}\ndecode: {other}\n"))


def request(tokens: int, *ids: int, block_tokens: int = 512) -> TraceRequest:
    return TraceRequest(arrival_s=2.0, input_tokens=tokens, output_tokens=0, block_ids=ids, block_tokens=block_tokens)


def numbers(job: Job) -> list[int]:
    return [int.from_bytes(key, "big", signed=True) for key in job.keys]


def test_traced_blocks_become_the_clusters() -> None:
    job = next(make_jobs([request(1400, 7, 8, 9)], block_tokens=512, speed=4.0))
    assert (job.arrived_at, job.prompt_tokens, job.output_tokens) == (0.5, 1400, 1)
    assert numbers(job) == [7, 8]  # the third is partly filled
    partial = next(make_jobs([request(1400, 7, 8, 9)], block_tokens=512, partial_blocks=True))
    assert numbers(partial) == [7, 8, 9]
    halves = next(make_jobs([request(1400, 7, 8, 9)], block_tokens=256))
    assert numbers(halves) == [14, 15, 16, 17, 18]
    doubled = next(make_jobs([request(1400, 7, 8, 9)], block_tokens=1024))
    assert numbers(doubled) == [8]
    full = next(make_jobs([request(1024, 7, 8)], block_tokens=512))
    assert numbers(full) == [7]  # a token of the prompt is always computed
    with pytest.raises(UsageError, match="a part or a multiple of that as block_tokens, got 300"):
        next(make_jobs([request(1400, 7, 8, 9)], block_tokens=300))
