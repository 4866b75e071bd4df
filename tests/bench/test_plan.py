"""mooncake plan: it finds what trying everything finds, and says what no cluster can do."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mooncake_cli.main import run as run_command
from mooncake_core.bench.plan import Planner, PlanSpace, Trial
from mooncake_core.config.load import load_config
from mooncake_core.errors import UsageError
from mooncake_core.sim.load import Setup, describe
from mooncake_core.sim.settings import SimulationConfig, SloSettings, SystemSettings
from mooncake_core.sim.summary import summarise
from mooncake_core.sim.systems import simulate
from mooncake_core.workload.trace import TraceSource

CONFIGS = Path(__file__).parent.parent.parent / "configs"
MODEL, HARDWARE = CONFIGS / "models" / "llama3-70b.yaml", CONFIGS / "hardware" / "a800-x8.yaml"
OBJECTIVES = SloSettings(ttft=3.0, tbt=0.02)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A hundred requests, one in a third of a second: 8k tokens, a prefill of a second, and nothing shared."""
    lines = [
        json.dumps(
            {
                "timestamp": 333 * number,
                "input_length": 8192 + 512 * (number % 3),
                "output_length": 40,
                "hash_ids": [100 * number + index for index in range(16 + number % 3)],
            }
        )
        for number in range(100)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def setup_of(slo: SloSettings = OBJECTIVES) -> Setup:
    return describe(SimulationConfig(model=str(MODEL), hardware=str(HARDWARE), slo=slo, sample_interval=0.0), Path())


def test_it_finds_the_smallest_of_all_clusters(trace: Path) -> None:
    setup, source = setup_of(), TraceSource(str(trace))
    trials: list[Trial] = []
    space = PlanSpace(fewest_nodes=2, most_nodes=8, policies=["kvcache-centric"], admissions=["none"])
    planner = Planner(setup, source, space, tried=trials.append)
    plan = planner.plan()
    assert plan.best is not None

    def goodput(prefill: int, decode: int) -> float:
        system = SystemSettings(prefill=prefill, decode=decode, equal_within=0.05, spread_shared=True)
        jobs = planner._load.jobs(system, seed=0, speed=1.0)
        return summarise(setup.config, system, simulate(setup, system, jobs)).goodput_ratio

    enough = [
        nodes for nodes in range(2, 9) if any(goodput(prefill, nodes - prefill) >= 0.99 for prefill in range(1, nodes))
    ]
    assert plan.best.nodes == min(enough)
    assert plan.best.goodput_ratio == pytest.approx(goodput(plan.best.prefill, plan.best.decode))
    assert plan.best in plan.frontier
    assert plan.num_simulated == len(trials) < 28  # all splits of all sizes
    for before, after in zip(plan.frontier, plan.frontier[1:], strict=False):
        assert before.nodes <= after.nodes


def test_the_pool_is_made_smaller_where_nothing_is_shared(trace: Path) -> None:
    space = PlanSpace(fewest_nodes=2, most_nodes=6, policies=["kvcache-centric"], admissions=["none"])
    best = Planner(setup_of(), TraceSource(str(trace)), space).plan().best
    assert best is not None
    whole = setup_of().host.dram_blocks * setup_of().model.block_bytes
    assert best.choice.dram < whole / 16


@pytest.mark.parametrize(
    ("slo", "message"),
    [
        (SloSettings(ttft=0.5, tbt=1.0), r"100 of 100 requests .* longer to prefill than 500ms on an idle instance"),
        (SloSettings(ttft=9.0, tbt=0.01), r"100 of 100 requests .* longer per token than 10ms on an idle instance"),
    ],
)
def test_what_no_number_of_nodes_can_do_is_refused(trace: Path, slo: SloSettings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Planner(setup_of(slo), TraceSource(str(trace)), PlanSpace(fewest_nodes=2, most_nodes=4))


def test_prompts_that_do_not_fit_are_refused(trace: Path) -> None:
    setup = setup_of()
    small = replace(setup, host=replace(setup.host, hbm_blocks=10))
    with pytest.raises(UsageError, match=r"need more KV memory than an instance has \(5120 tokens, 1.562GiB\)"):
        Planner(small, TraceSource(str(trace)), PlanSpace(fewest_nodes=2, most_nodes=4))


def test_the_command_writes_a_cluster(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trace", str(trace), "--model", str(MODEL), "--hardware", str(HARDWARE)]
    arguments += ["--ttft", "3s", "--tbt", "20ms", "--nodes", "2..8", "--policy", "kvcache-centric", "--price", "10"]
    out = tmp_path / "plan"
    assert run_command(["plan", *arguments, "--out", str(out)]) == 0
    best = json.loads((out / "plan.json").read_text())["best"]
    cluster = load_config(out / "cluster.yaml", environ=os.environ).config
    assert (len(cluster.prefill), len(cluster.decode)) == (best["prefill"], best["decode"])
    assert cluster.scheduler.ttft_slo == 3.0
    assert cluster.prefill[0].engine.cost is not None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[-1] == "per hour"
    (chosen,) = [line.split("\t") for line in lines if line.startswith("*")]
    assert chosen[-1] == f"{10 * (best['prefill'] + best['decode'])}"


def test_too_few_nodes_are_said(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--trace", str(trace), "--model", str(MODEL), "--hardware", str(HARDWARE), "--ttft", "2s"]
    assert run_command(["plan", *arguments, "--nodes", "2..3", "--policy", "kvcache-centric"]) == 1
    assert "3 nodes do not serve 99% of the requests within the objectives" in capsys.readouterr().err
    assert run_command(["plan", *arguments, "--nodes", "1..3"]) == 2
    assert "expected a range of 2 nodes and more" in capsys.readouterr().err
    assert run_command(["plan", *arguments, "--nodes", "many"]) == 2
    assert "expected a range such as 4..64, got 'many'" in capsys.readouterr().err


def test_a_model_that_is_too_large_is_refused(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(HARDWARE.read_text().replace("devices: 8", "devices: 1"))
    assert run_command(["plan", "--trace", str(trace), "--model", str(MODEL), "--hardware", str(small)]) != 0
    assert "larger ones, or a smaller dtype" in capsys.readouterr().err
