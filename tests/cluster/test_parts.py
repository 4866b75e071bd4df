"""A cluster started in parts: what is selected, what is refused, and what is said when it cannot start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from mooncake_core.roles.supervisor import DRAIN_S
from mooncake_core.testing.cluster import STOPPED_S, Cluster, alive, as_json, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
MOCK = Path(__file__).parent.parent.parent / "configs" / "mock.yaml"


def mooncake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mooncake_cli.main", *arguments]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return mooncake(folder, "start", "-c", str(MOCK), *arguments)


def test_parts_are_started_by_the_name_of_their_entry_and_have_logs_of_their_own(tmp_path: Path) -> None:
    master = as_json(start(tmp_path, "--role", "master", "--detach", "--json"))
    port = master["master_address"].rpartition(":")[2]
    at = ("--set", f"master.port={port}", "--detach")
    try:
        crowd = as_json(start(tmp_path, "--role", "decode", "--name", "crowd", *at, "--json"))
        assert [process["name"] for process in crowd["processes"]] == ["crowd-group-0", "crowd-group-1"]
        one = start(tmp_path, "--role", "prefill", "--name", "prefill-1", *at)
        assert "cluster mock is ready: 2 processes" in one.stderr
        assert "is ready: 1 process" in Path(master["log"]).read_text()
        assert crowd["log"] != master["log"]
        again = start(tmp_path, "--role", "decode", *at)
        assert again.returncode == 2
        assert "crowd-group-0, crowd-group-1 of decode-crowd) already runs here" in again.stderr
    finally:
        stopping = time.monotonic()
        assert mooncake(tmp_path, "stop").returncode == 0
    assert time.monotonic() - stopping < STOPPED_S


def test_a_part_that_is_stopped_finishes_what_runs_within_its_drain_timeout(tmp_path: Path) -> None:
    master = as_json(start(tmp_path, "--role", "master", "--detach", "--json"))
    at = ("--set", f"master.port={master['master_address'].rpartition(':')[2]}", "--detach", "--json")
    try:
        decode = as_json(start(tmp_path, "--role", "decode", "--name", "decode-0", *at))
        start(tmp_path, "--role", "prefill", "--name", "prefill-0", *at)
        gateway = as_json(start(tmp_path, "--role", "gateway", *at))
        body = {"model": "demo", "prompt": "hello", "max_tokens": 600, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{gateway['gateway_url']}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            stopping = time.monotonic()
            os.kill(decode["pid"], signal.SIGTERM)
            rest = [line for line in lines if line]
        took_s = time.monotonic() - stopping
        wait_for(lambda: not alive(decode["pid"]), STOPPED_S)
        assert rest[-1] == "data: [DONE]"
        assert took_s > DRAIN_S, "the answer was too short to show anything"
        assert "goes on elsewhere" not in Path(gateway["log"]).read_text()
    finally:
        assert mooncake(tmp_path, "stop").returncode == 0


def test_a_second_member_of_a_name_is_refused_while_the_first_answers(tmp_path: Path) -> None:
    cluster = Cluster(MOCK, tmp_path)
    try:
        port = cluster.state.master_address.rpartition(":")[2]
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        twice = ("--role", "decode", "--name", "decode-1", "--set", f"master.port={port}")
        result = start(elsewhere, *twice)
        assert result.returncode == 2
        assert f"decode-1 is a member of the cluster already: process {cluster.pid('decode-1')}" in result.stderr
        assert cluster.log.count("decode decode-1 has joined") == 1
    finally:
        cluster.stop()


def test_what_a_detached_start_waits_for_is_said(tmp_path: Path) -> None:
    code = "from mooncake_cli import main; from mooncake_cli.commands import start; start.DETACH_PATIENCE_S = 12; main.main()"
    arguments = ["start", "-c", str(MOCK), "--role", "decode", "--name", "decode-1", "--detach"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--set", "master.port=1"],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 3
    assert "not ready within 12s: decode-1" in result.stderr
    assert "waiting for the master: nobody listens at tcp://127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("model=/no/such/model", "expected `demo` or a Hugging Face folder"),
        ("prefill.0.engine.options={typo: 1}", "engine.options of the mock engine"),
    ],
)
def test_a_start_that_fails_says_why_once_and_soon(tmp_path: Path, setting: str, reason: str) -> None:
    began = time.monotonic()
    result = start(tmp_path, "--role", "all", "--set", setting)
    assert time.monotonic() - began < 40  # and does not wait for what cannot come
    assert result.returncode == 2
    assert result.stderr.count(reason) == 1, result.stderr
    assert "killed" not in result.stderr


def test_the_wrong_key_is_exit_code_2_at_start_as_well(tmp_path: Path) -> None:
    keys = [tmp_path / name for name in ("one.key", "two.key")]
    for key in keys:
        mooncake(tmp_path, "auth", "init", "--file", str(key))
    cluster = Cluster(MOCK, tmp_path, f"auth.key_file={keys[0]}")
    try:
        port = cluster.state.master_address.rpartition(":")[2]
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        part = ("--role", "decode", "--name", "decode-1", "--set", f"master.port={port}")
        result = start(elsewhere, *part, "--set", f"auth.key_file={keys[1]}")
        assert result.returncode == 2
        assert "the key given is not that of the cluster, or the cluster has none" in result.stderr
    finally:
        cluster.stop()
