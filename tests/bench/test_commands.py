"""`mooncake bench` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mooncake_cli import exits, main

if TYPE_CHECKING:
    from conftest import Running

LOAD = ["--requests", "6", "--prompt-tokens", "14", "--output-tokens", "4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1", "--concurrency", "2"], "--concurrency is of the closed loop"),
        (["--pairs", "10"], "--pairs and --at-least belong to --against"),
        (["--against", "http://x", "--pairs", "3"], "3 is not in the range x>=10"),
        (["--against", "http://x", "--save-outputs", "x"], "outputs are saved and expected of one server"),
        (["--sampled", "--save-outputs", "x"], "sampled outputs are not comparable"),
        (["--slo-ttft", "soon"], "expected a duration like 30s, 100ms or 5m, got 'soon'"),
        (["--expect-outputs", "/no/such/file"], "/no/such/file: cannot be read"),
    ],
)
def test_wrong_usage_of_serve_is_said_so(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["bench", "serve", "--url", "http://127.0.0.1:1", *arguments]) == exits.USAGE
    assert message in capsys.readouterr().err


def test_a_run_prints_a_table_and_its_seed(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    server.fake.mooncake = {"computed_s": 0.4, "exposed_s": 0.1}
    assert main.run(["bench", "serve", "--url", server.url, *LOAD, "--slo-ttft", "10s"]) == exits.DONE
    lines = capsys.readouterr().out.splitlines()
    assert "its share of prefill\t6\t25.0%\t25.0%\t25.0%\t25.0%" in lines
    assert any(line.startswith("goodput: ") and "TTFT within 10s (100.0% of all)" in line for line in lines)
    seed = lines[-1].partition("seed ")[2].partition(",")[0]
    assert main.run(["bench", "serve", "--url", server.url, *LOAD, "--seed", seed]) == exits.DONE
    prompts = [body["prompt"] for body in server.fake.bodies if body["max_tokens"] == 4]
    assert sorted(prompts[:6]) == sorted(prompts[6:])
    salts = {body["cache_salt"] for body in server.fake.bodies if body["max_tokens"] == 4}
    assert len(salts) == 2


def test_rows_of_what_the_server_does_not_tell_are_left_out(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fake.refused = {"cache_salt"}
    assert main.run(["bench", "serve", "--url", server.url, *LOAD]) == exits.DONE
    printed = capsys.readouterr()
    assert "exposed" not in printed.out
    assert "goodput" not in printed.out
    assert "this server takes no cache_salt" in printed.err


def test_a_rejection_is_a_failure_only_where_none_is_measured(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fake.statuses = {2: 429, 9: 429, 16: 500}
    assert main.run(["bench", "serve", "--url", server.url, *LOAD]) == exits.FAILED
    assert main.run(["bench", "serve", "--url", server.url, *LOAD, "--rate", "500"]) == exits.DONE
    assert main.run(["bench", "serve", "--url", server.url, *LOAD, "--rate", "500"]) == exits.FAILED
    assert "failed: 1 HTTP 500 rejected" in capsys.readouterr().out


def test_outputs_are_saved_and_a_difference_is_named(
    server: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "outputs.jsonl")
    command = ["bench", "serve", "--url", server.url, *LOAD]
    assert main.run([*command, "--save-outputs", path]) == exits.DONE
    assert main.run([*command, "--expect-outputs", path]) == exits.DONE
    server.fake.changed_word = "changed-by-the-test"
    assert main.run([*command, "--expect-outputs", path]) == exits.FAILED
    assert "error: request 0 differs from token 0 on" in capsys.readouterr().err


def test_a_comparison_fails_only_when_more_was_asked_for(
    server: Running, other_server: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["bench", "serve", "--url", server.url, "--against", other_server.url, "--requests", "2"]
    assert main.run([*command, "--at-least", "0.01", "--out", str(tmp_path / "out"), "--json"]) == exits.DONE
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["pairs"]) == 10
    assert printed["output_tokens_per_s"]["count"] == 10
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == printed
    assert main.run([*command, "--at-least", "1000"]) == exits.FAILED
    assert "expected at least 1000 times the tokens/s" in capsys.readouterr().err


def test_without_matplotlib_there_is_a_report_and_a_sentence(
    server: Running, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main.run(["bench", "serve", "--url", server.url, *LOAD, "--out", str(tmp_path / "out")]) == exits.DONE
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    assert "pip install 'mooncake-toolkit[plot]'" in capsys.readouterr().err


def test_plots_are_drawn(server: Running, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main.run(["bench", "serve", "--url", server.url, *LOAD, "--out", str(tmp_path)]) == exits.DONE
    for name in ("ttft_cdf.png", "gap_cdf.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_an_interrupt_prints_what_was_measured_until_then(server: Running, tmp_path: Path) -> None:
    server.fake.gap_s = 0.02
    command = [sys.executable, "-m", "mooncake_cli.main", "bench", "serve", "--url", server.url]
    process = subprocess.Popen(
        [*command, *LOAD, "--requests", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    while len(server.fake.bodies) < 40:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, complaints = process.communicate(timeout=30)
    assert process.returncode == exits.INTERRUPTED
    assert "interrupted: what was measured until now" in complaints
    assert int(printed.splitlines()[1].split("\t")[1]) >= 24
    assert "not ended: " in printed
    assert "Traceback" not in complaints
