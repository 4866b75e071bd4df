"""A simulation's YAML, from file to summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mooncake_cli.main import run as run_command
from mooncake_core.errors import ConfigError, ModelTooLarge
from mooncake_core.sim.job import Job
from mooncake_core.sim.jobs import make_jobs
from mooncake_core.sim.load import load_simulation
from mooncake_core.sim.summary import summarise
from mooncake_core.sim.systems import simulate
from mooncake_core.workload.trace import read_trace

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs" / "sim").glob("*.yaml") if path.name != "constants.yaml")
BASE = f"model: {ROOT}/configs/models/llama3-70b.yaml\nhardware: {ROOT}/configs/hardware/a800-x8.yaml\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Forty requests in twenty seconds, half of which share a prefix of 4 blocks."""
    lines = []
    for number in range(40):
        length = 3000 + 100 * (number % 7)
        shared = [0, 1, 2, 3] if number % 2 else [100 * number + index + 10 for index in range(4)]
        rest = [100 * number + index + 50 for index in range(-(-length // 512) - 4)]
        line = {"timestamp": 500 * number, "input_length": length, "output_length": 1 + 10 * (number % 5)}
        lines.append(json.dumps({**line, "hash_ids": [*shared, *rest]}))
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def write(folder: Path, text: str) -> Path:
    path = folder / "simulation.yaml"
    path.write_text(BASE + text)
    return path


def jobs_of(trace: Path) -> Iterator[Job]:
    return make_jobs(read_trace(str(trace)), block_tokens=512)


SYSTEMS = """
systems:
  - {name: mooncake, prefill: 2, decode: 2}
  - {name: coupled, kind: coupled, instances: 4, prefix_caching: true, router: random}
"""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads(path: Path) -> None:
    assert load_simulation(path).config.systems


def test_two_runs_are_equal_byte_for_byte(tmp_path: Path, trace: Path) -> None:
    setup = load_simulation(write(tmp_path, SYSTEMS + "sample_interval: 1s\nseed: 7\n"))
    results = []
    for _ in range(2):
        runs = [(system, simulate(setup, system, jobs_of(trace))) for system in setup.config.systems]
        summaries = [summarise(setup.config, system, simulation) for system, simulation in runs]
        results.append(msgspec.json.encode([summaries, [simulation.records.rows() for _, simulation in runs]]))
    assert results[0] == results[1]


def test_the_summary_counts_what_was_served(tmp_path: Path, trace: Path) -> None:
    setup = load_simulation(write(tmp_path, SYSTEMS + "slo: {ttft: 30s, tbt: 1s, thresholds: [1us, 10]}\n"))
    system = setup.config.systems[0]
    found = summarise(setup.config, system, simulate(setup, system, jobs_of(trace)))
    assert (found.requests, found.completed, found.goodput, found.goodput_ratio) == (40, 40, 40, 1.0)
    assert [entry.goodput for entry in found.thresholds] == [8, 40]  # answers of one token have no gaps
    assert found.hit_ratio.tokens > 0.2
    assert found.ttft_s is not None
    assert 0 < found.ttft_s.p50 <= found.ttft_s.p90 <= found.ttft_s.p99
    assert 0 < found.utilisation["prefill"] < 1


def test_what_cannot_serve_is_refused(tmp_path: Path) -> None:
    text = "systems:\n  - {name: a, prefill: 0, decode: 0}\n  - {name: a, kind: coupled, instances: 0, routr: x}\n"
    with pytest.raises(ConfigError) as caught:
        load_simulation(write(tmp_path, text))
    assert "unknown key; did you mean router?" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_simulation(write(tmp_path, text.replace(", routr: x", "")))
    problems = caught.value.problems
    assert any(
        "simulation.yaml:4:24: systems.0.prefill: expected 1 or more instances, got 0" in line for line in problems
    )
    assert any("systems.1.instances" in line for line in problems)
    assert any("a name of its own" in line for line in problems)


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    model = (ROOT / "configs" / "models" / "llama3-70b.yaml").read_text()
    (tmp_path / "model.yaml").write_text(model.replace("layers: 80", "layers: 800"))
    path = tmp_path / "simulation.yaml"
    path.write_text(f"model: model.yaml\nhardware: {ROOT}/configs/hardware/a800-x8.yaml\n")
    with pytest.raises(ModelTooLarge, match=r"llama3-70b does not fit a800-x8.*parameters.*too few"):
        load_simulation(path)


def test_constants_count_where_the_file_has_no_section_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "constants.yaml").write_text(BASE + "seed: 3\nengine: {block_tokens: 256, max_tokens: 9}\n")
    path = tmp_path / "simulation.yaml"
    path.write_text("constants: constants.yaml\nengine: {block_tokens: 128}\n")
    config = load_simulation(path).config
    assert (config.seed, config.engine.block_tokens, config.engine.max_tokens) == (3, 128, 2048)
    path.write_text("constants: missing.yaml\n")
    with pytest.raises(ConfigError, match="missing.yaml"):
        load_simulation(path)


def test_changes_of_the_yaml_happen(tmp_path: Path, trace: Path) -> None:
    text = """
systems:
  - name: mooncake
    prefill: 2
    decode: 2
    changes:
      - {at: 2s, instance: prefill-0, change: fail-host}
      - {at: 4s, instance: prefill-0, change: join}
      - {at: 6s, instance: decode-1, change: fail}
  - name: coupled
    kind: coupled
    instances: 2
    changes: [{at: 2s, instance: instance-0, change: fail}, {at: 3s, instance: instance-0, change: join}]
"""
    setup = load_simulation(write(tmp_path, text))
    for system in setup.config.systems:
        found = summarise(setup.config, system, simulate(setup, system, jobs_of(trace)))
        assert found.completed == 40


def test_the_command(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, SYSTEMS)
    out = tmp_path / "out"
    arguments = [
        "bench",
        "trace",
        str(trace),
        "--config",
        str(config),
        "--json",
        "-",
        "--out",
        str(out),
        "--speed",
        "2",
    ]
    assert run_command(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["trace"]["speed"] == 2
    assert [system["name"] for system in shown["systems"]] == ["mooncake", "coupled"]
    names = {path.name for path in out.iterdir()}
    assert {"report.json", "ttft.png", "load-mooncake.png", "rejections.png"} <= names
    assert run_command(["bench", "trace", str(trace), "--config", str(config), "--system", "none"]) == 2
    assert "mooncake, coupled" in capsys.readouterr().err


def test_seeds_and_capacity_are_reported(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, SYSTEMS.replace("prefill: 2", "prefill: 2, policy: random"))
    arguments = ["bench", "trace", str(trace), "--config", str(config), "--json", "-", "--seeds", "2", "--limit", "10"]
    assert run_command([*arguments, "--capacity", "0.5"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(row["seed"], row["name"]) for row in shown["seeds"]] == [
        (0, "mooncake"),
        (0, "coupled"),
        (1, "mooncake"),
        (1, "coupled"),
    ]
    assert [row["name"] for row in shown["capacities"]] == ["mooncake", "coupled"]
    assert shown["capacities"][0]["speeds"][0] > 1
