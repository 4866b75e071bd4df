"""mooncake bench pairs: what it runs, on a small trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mooncake_cli.main import run as run_command

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Forty requests, one in half a second: more than one prefill instance has time for at twice that speed."""
    lines = [
        {
            "timestamp": 500 * number,
            "input_length": 4000 + 2000 * (number % 3),
            "output_length": 20,
            "hash_ids": [100 * number + index for index in range(-(-(4000 + 2000 * (number % 3)) // 512))],
        }
        for number in range(40)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.yaml"
    path.write_text(
        f"constants: {ROOT}/configs/sim/constants.yaml\n"
        f"model: {ROOT}/configs/models/llama3-70b.yaml\nhardware: {ROOT}/configs/hardware/a800-x8.yaml\n"
        "slo: {ttft: 2s, tbt: 20ms}\nsystems: [{prefill: 1, decode: 1}]\n"
    )
    return path


def test_both_get_the_same_budget_and_all_pairs_are_shown(
    trace: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trace), "--config", str(config), "--split", "10s", "--seeds", "2", "--requests", "5"]
    assert run_command(["bench", "pairs", *arguments, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["papers"]) == len(report["ours"]) == 9
    assert {(duel["load"], duel["speed"]) for duel in report["duels"]} == {
        (load, speed) for load in ("trace", "families", "sessions", "report-16k") for speed in (1.0, 2.0, 3.0, 4.0)
    }
    assert [duel["seeds"] for duel in report["duels"] if duel["load"] != "trace"] == [2] * 12
    assert len(report["table"]) == 30
    assert 0 < min(cell["goodput_ratio"] for cell in report["table"]) < 1
    assert "best of 9 with balancing_threshold" in capsys.readouterr().out


def test_a_trace_that_is_too_short_is_refused(trace: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "pairs", str(trace), "--config", str(config)]) == 2
    assert "expected requests before and after 1800s, the last comes at 19.5s" in capsys.readouterr().err
