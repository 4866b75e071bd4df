"""mooncake bench scheduler: what it counts, on a small cluster."""

from __future__ import annotations

import json

import pytest

from mooncake_cli.main import run as run_command


def test_each_cell_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--instances", "4,16", "--blocks", "64", "--matched", "0,8", "--decisions", "20", "--json"]
    assert run_command(["bench", "scheduler", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(cell["instances"], cell["matched"]) for cell in report["cells"]] == [(4, 0), (4, 8), (16, 0), (16, 8)]
    for cell in report["cells"]:
        assert cell["decisions_per_s"] > cell["lifecycles_per_s"] > 0
        assert cell["decision_s"]["count"] == 20


def test_a_policy_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "scheduler", "--policy", "kvcache-centrik"]) == 2
    assert "did you mean kvcache-centric?" in capsys.readouterr().err


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "scheduler", "--instances", "2", "--blocks", "9", "--decisions", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[:4] == ["instances", "blocks", "matched", "decisions/s"]
    assert len(lines) == 4
