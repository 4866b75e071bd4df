"""Starting, failing to start, and ending: what is said, and that nothing is left."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from mooncake_core.roles.run_directory import RunDirectory
from mooncake_core.testing.cluster import STOPPED_S, Cluster, alive, as_json, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"
MOCK = CONFIGS / "mock.yaml"


POOL = """
cluster: pool
store: [{name: node, capacity: 16MiB, count: 2}]
prefill: []
decode: []
"""


def start(folder: Path, *arguments: str, config: Path = MOCK, role: str = "all") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mooncake_cli.main", "start", "--role", role, "-c", str(config), *arguments]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(MOCK, tmp_path)
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=/no/such/model"], "expected `demo` or a Hugging Face folder, got '/no/such/model'"),
        (["prefill.0.engine.kv_memory=10000GiB", "prefill.0.engine.kind=torch"], "of KV memory"),
        (["prefill.0.local_node.capacity=10000TiB"], "lower its capacity"),
        (["prefill.0.engine.options={typo: 1}"], "typo"),
        (["auth.key_file=/no/such/key"], "mooncake auth init"),
    ],
)
def test_what_cannot_start_says_why_and_ends_with_a_code(tmp_path: Path, settings: list[str], message: str) -> None:
    result = start(tmp_path, *(part for setting in settings for part in ("--set", setting)))
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "mooncake").rglob("*.json"))


@pytest.mark.parametrize("section", ["master", "gateway"])
def test_a_port_in_use_is_named(tmp_path: Path, section: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = start(tmp_path, "--set", f"{section}.port={port}")
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_admin_port_is_the_only_error(tmp_path: Path) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        port, control = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        result = start(tmp_path, "--set", f"master.admin_port={port}", "--set", f"master.port={control}")
    assert result.returncode == 1
    (error,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert f"the admin port cannot listen on 127.0.0.1:{port}" in error
    (blamed,) = [line for line in result.stderr.splitlines() if "could not start" in line]
    assert blamed.startswith("master ")


def test_a_second_start_of_the_same_cluster_is_refused(cluster: Cluster) -> None:
    result = start(cluster.folder)
    assert result.returncode == 2
    assert f"already runs here as process {cluster.process.pid}" in result.stderr


def test_processes_and_commands_of_one_cluster_do_not_take_the_master_of_another(cluster: Cluster) -> None:
    port = cluster.state.master_address.rpartition(":")[2]
    other = ["-c", str(MOCK), "--set", "cluster=other", "--set", f"master.port={port}"]
    for command in (["start", "--role", "decode", "--name", "decode-1"], ["status"], ["inspect", "nodes"]):
        result = cluster.command(*command, *other)
        assert result.returncode == 2
        assert f"{cluster.state.master_address} is the master of cluster mock, not of other" in result.stderr
    assert len(cluster.status().members) == 16


def test_ctrl_c_ends_everything_soon(cluster: Cluster) -> None:
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    assert len(children) == 13
    started = time.monotonic()
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.process.wait(30) == 0
    assert time.monotonic() - started < STOPPED_S
    assert not [child.pid for child in children if alive(child.pid)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_what_ctrl_c_ends_before_it_is_ready_has_its_exit_code(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "pool.yaml").write_text(f"{POOL}master: {{port: 1}}\n")
    command = [sys.executable, "-m", "mooncake_cli.main", "start", "--role", "store"]
    process = subprocess.Popen(
        [*command, "-c", str(tmp_path / "pool.yaml")], env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    )
    try:
        wait_for(lambda: bool(RunDirectory("pool", tmp_path / "mooncake").states()))
        process.send_signal(number)
        assert process.wait(30) == code
    finally:
        process.kill()
        process.wait()


def test_kill_9_of_the_parent_leaves_nothing(cluster: Cluster) -> None:
    shared_memory = set(os.listdir("/dev/shm"))
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    cluster.process.kill()
    cluster.process.wait()
    wait_for(lambda: not [child.pid for child in children if alive(child.pid)])
    assert set(os.listdir("/dev/shm")) <= shared_memory
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(("127.0.0.1", int(cluster.state.gateway_url.rpartition(":")[2])))
    assert cluster.command("stop").stderr == "nothing runs here\n"


def test_what_dies_is_started_again_and_said_so(cluster: Cluster) -> None:
    pid = cluster.kill("decode-1")
    cluster.wait_until_back("decode-1", pid)
    assert "decode-1" in cluster.log
    assert "died (killed by SIGKILL); starting it again in 0.2s" in cluster.log
    assert cluster.complete("hello")["usage"]["completion_tokens"] == 8


def test_members_of_one_process_are_members_of_their_own(cluster: Cluster) -> None:
    crowd = [member for member in cluster.status().members if member.name.startswith("crowd-")]
    assert len(crowd) == 6
    assert len({member.pid for member in crowd}) == 2
    pid = cluster.kill("crowd-group-1")
    cluster.wait_until_back("crowd-group-1", pid)
    wait_for(lambda: len([member for member in cluster.status().members if member.pid != pid]) == 16)
    for number in range(20):
        assert cluster.complete([5 + number] * 40)["usage"]["completion_tokens"] == 8
    used = {decision["decode"] for decision in as_json(cluster.command("inspect", "decisions", "--json"))["decisions"]}
    assert any(name.startswith("crowd-") for name in used)


def test_an_objective_that_cannot_be_met_is_429(tmp_path: Path) -> None:
    cluster = Cluster(MOCK, tmp_path, "scheduler.ttft_slo=1us")
    try:
        answer = cluster.http.post("/v1/completions", json=cluster.body("hello"))
        assert answer.status_code == 429
        assert "exceeds the objective of 1us" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert as_json(cluster.command("inspect", "decisions", "--json"))["decisions"][0]["outcome"] == "rejected"
    finally:
        cluster.stop()


def commands(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a mooncake command against what runs in a run directory."""
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        run = [sys.executable, "-m", "mooncake_cli.main", *arguments]
        return subprocess.run(run, env=environ, capture_output=True, text=True, timeout=60)

    return command


def suggested(started: subprocess.CompletedProcess[str]) -> list[str]:
    """The command that a start says to try."""
    (line,) = [line for line in started.stderr.splitlines() if line.startswith("try: mooncake ")]
    return shlex.split(line.removeprefix("try: mooncake "))


def test_detach_status_and_stop(tmp_path: Path) -> None:
    result = start(tmp_path, "--detach")
    assert result.returncode == 0, result.stderr
    assert "cluster mock is ready: 13 processes; the API is at http://127.0.0.1:" in result.stderr
    assert suggested(result) == ["complete", "--cluster", "mock", "In the beginning"]
    command = commands(tmp_path)
    status = as_json(command("status", "--json"))
    assert status["ready"]
    assert {member["role"] for member in status["members"]} == {"gateway", "store", "prefill", "decode"}
    assert command("complete", "hello", "--max-tokens", "4").returncode == 0
    outputs = str(tmp_path / "outputs.jsonl")
    bench = as_json(command("bench", "serve", "--requests", "12", "--save-outputs", outputs, "--json"))
    assert bench["succeeded"] == 12
    assert bench["prompt_tokens"] == pytest.approx(12 * 256, rel=0.05)
    assert bench["breakdown"]["exposed_s"]["count"] == 12
    assert bench["extensions"] == ["cache_salt", "ignore_eos", "return_token_ids"]
    again = command("bench", "serve", "--requests", "12", "--rate", "50", "--warm", "--expect-outputs", outputs)
    assert again.returncode == 0, again.stderr
    assert as_json(command("inspect", "decisions", "--json"))["decisions"][0]["outcome"] == "dispatched"
    assert len(as_json(command("inspect", "nodes", "--json"))["nodes"]) == 3
    assert command("inspect", "cache", "--check").returncode == 0
    assert command("stop").returncode == 0
    assert command("status").returncode == 3


def test_a_pool_is_not_said_to_complete(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(POOL)
    command = commands(tmp_path)
    try:
        result = start(tmp_path, "--detach", config=tmp_path / "pool.yaml")
        assert result.returncode == 0, result.stderr
        assert suggested(result) == ["inspect", "nodes", "--cluster", "pool"]
        shown = command(*suggested(result))
        assert shown.returncode == 0, shown.stderr
        assert "node-1" in shown.stdout
    finally:
        command("stop")


def test_a_pool_is_ready_without_instances_and_its_gateway_is_not(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(POOL)
    command = commands(tmp_path)
    try:
        assert start(tmp_path, "--detach", config=tmp_path / "pool.yaml").returncode == 0
        shown = command("status")
        assert shown.returncode == 0, shown.stderr
        assert ": ready, 0 requests" in shown.stderr
        status = as_json(command("status", "--json"))
        assert (status["ready"], status["missing"]) == (True, [])
        answer = httpx.get(f"{status['gateway_url']}/ready")
        assert answer.status_code == 503
        assert answer.json()["missing"] == ["no prefill instance has joined", "no decode instance has joined"]
        refused = command("complete", "hello")
        assert (refused.returncode, "shows which prefill and decode instances" in refused.stderr) == (1, True)
    finally:
        command("stop")


def test_a_pool_awaits_its_nodes_and_instances_that_join_it_count(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "pool.yaml").write_text(f"{POOL}master: {{port: {port}}}\n")
    (tmp_path / "more.yaml").write_text(
        f"cluster: pool\nmaster: {{port: {port}}}\nprefill: [{{name: late, engine: {{kind: mock}}}}]\n"
    )
    command = commands(tmp_path)
    try:
        assert start(tmp_path, "--detach", config=tmp_path / "pool.yaml", role="master").returncode == 0
        waits = command("status")
        assert (waits.returncode, "not ready: no node has joined, 0 requests" in waits.stderr) == (1, True)
        assert start(tmp_path, "--detach", config=tmp_path / "pool.yaml", role="store").returncode == 0
        assert command("status").returncode == 0
        joined = start(tmp_path, "--detach", config=tmp_path / "more.yaml", role="prefill")
        assert joined.returncode == 0, joined.stderr
        waits = command("status")
        assert (waits.returncode, "not ready: no decode instance has joined" in waits.stderr) == (1, True)
    finally:
        command("stop")


def test_one_role_alone_is_not_said_to_complete(tmp_path: Path) -> None:
    command = commands(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"master.port={free.getsockname()[1]}"
    try:
        for role in ("master", "gateway"):
            result = start(tmp_path, "--detach", "--set", port, role=role)
            assert result.returncode == 0, result.stderr
            assert suggested(result) == ["status", "--cluster", "mock"]
        assert "no prefill instance has joined" in command(*suggested(result)).stderr
    finally:
        command("stop")


def test_a_detached_start_says_what_it_waits_for_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(f"{POOL}master: {{port: 1}}\n")
    command = [sys.executable, "-m", "mooncake_cli.main", "start", "--role", "store", "--detach"]
    process = subprocess.Popen(
        [*command, "-c", str(tmp_path / "pool.yaml")],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        log_file = tmp_path / "mooncake" / "pool" / "store.log"
        assert process.stderr.readline() == f"not ready yet: node-0, node-1; the end of {log_file}:\n"
        assert "waiting for the master: " in process.stderr.readline()
        (state,) = RunDirectory("pool", tmp_path / "mooncake").states()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        said = process.stderr.read().strip()
        assert said == f"interrupted: ending process {state.pid}, which is not ready yet"
        assert not [pid for pid in (state.pid, *(child.pid for child in state.processes)) if alive(pid)]
    finally:
        process.kill()
        process.communicate()
        commands(tmp_path)("stop", "--cluster", "pool")


def test_roles_started_one_by_one_find_each_other_in_any_order(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        run = [sys.executable, "-m", "mooncake_cli.main", *arguments]
        return subprocess.run(run, env=environ, capture_output=True, text=True, timeout=60)

    shared = ["-c", str(MOCK), "--set", f"master.port={port}"]
    starts = [
        subprocess.Popen(
            [sys.executable, "-m", "mooncake_cli.main", "start", "--role", *role, *shared],
            env=environ,
            stderr=subprocess.DEVNULL,
        )
        for role in (["decode", "--name", "decode-1"], ["prefill", "--name", "prefill-0"], ["gateway"], ["master"])
    ]
    try:
        wait_for(lambda: command("status").returncode == 0, 30)
        names = {member["name"] for member in as_json(command("status", "--json"))["members"]}
        assert names == {"decode-1", "prefill-0", "prefill-0-node", "gateway"}
        assert command("complete", "hello", "--max-tokens", "4").returncode == 0
        assert command("stop").returncode == 0
        assert [process.wait(10) for process in starts] == [0, 0, 0, 0]
    finally:
        for process in starts:
            process.kill()
            process.wait()


def test_a_detached_start_that_fails_says_why(tmp_path: Path) -> None:
    result = start(tmp_path, "--detach", "--set", "model=/no/such/model")
    assert result.returncode == 2
    assert "Hugging Face folder" in result.stderr


@pytest.mark.parametrize("detach", [True, False])
def test_a_start_that_has_no_room_for_its_files_says_which(tmp_path: Path, detach: bool) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "mooncake_cli.main", "start", "--role", "all", "-c", str(MOCK)]
    result = subprocess.run(
        ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash", *command, *(["--detach"] if detach else [])],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    folder = tmp_path / "mooncake" / "mock"
    assert result.returncode == 1
    if detach:
        assert f"the start ended with code 1 and wrote nothing to {folder}/all.log: is its disk full?" in result.stderr
    else:
        assert f"error: cannot be written (File too large): {folder}/all.json" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == (["all.log"] if detach else [])


def test_a_cluster_with_a_key_serves_and_refuses_other_keys(tmp_path: Path) -> None:
    keys = [tmp_path / "one.key", tmp_path / "two.key"]
    for key in keys:
        command = [sys.executable, "-m", "mooncake_cli.main", "auth", "init", "--file", str(key)]
        subprocess.run(command, check=True, capture_output=True)
    cluster = Cluster(MOCK, tmp_path, f"auth.key_file={keys[0]}")
    try:
        assert cluster.complete("hello")["usage"]["completion_tokens"] == 8
        assert cluster.command("status").returncode == 0
        config = ["-c", str(MOCK), "--set", f"master.port={cluster.state.master_address.rpartition(':')[2]}"]
        other = {**cluster.environ, "XDG_RUNTIME_DIR": str(tmp_path / "other")}
        for key, message in (
            (f"auth.key_file={keys[1]}", "not that of the cluster"),
            ("cluster=x", "no key was given"),
        ):
            run = [sys.executable, "-m", "mooncake_cli.main", "status", *config, "--set", key]
            result = subprocess.run(run, env=other, capture_output=True, text=True, timeout=30)
            assert result.returncode == 2
            assert message in result.stderr
    finally:
        cluster.stop()


def test_a_gateway_that_listens_everywhere_is_found_by_master_and_commands(tmp_path: Path) -> None:
    cluster = Cluster(MOCK, tmp_path, "gateway.host=0.0.0.0", "insecure=true")
    try:
        assert cluster.state.gateway_url.startswith("http://127.0.0.1:")
        assert cluster.command("complete", "hello", "--max-tokens", "4").returncode == 0
        (gateway,) = [member for member in cluster.status().members if member.role == "gateway"]
        assert gateway.control_address.startswith("tcp://127.0.0.1:")
        assert len(as_json(cluster.command("inspect", "requests", "--json"))["requests"]) == 1
    finally:
        cluster.stop()


def test_a_pool_that_is_used_up_only_means_less_cache(tmp_path: Path) -> None:
    cluster = Cluster(
        MOCK, tmp_path, "prefill.0.local_node.capacity=64KiB", "pool.eviction=s3-fifo", "pool.placement=local-first"
    )
    try:
        for number in range(30):
            cluster.complete([2 + (number * 7 + index) % 500 for index in range(300)])
        report = cluster.cache()
        assert report.refused_puts > 0
        assert report.evicted > 0
        assert report.evicted_bytes > report.evicted
        assert report.eviction_rounds > 0
        assert report.problems == []
        shown = cluster.command("inspect", "cache").stdout
        assert f"evicted\t{report.evicted} (" in shown
        assert "eviction stalled\t" in shown
    finally:
        cluster.stop()
