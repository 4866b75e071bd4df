"""Processes die under load, and no request is lost: `scripts/acceptance survival`."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mooncake_core.testing.cluster import STOPPED_ALONE_S, Cluster, alive, wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1800)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"
REQUESTS, CONCURRENCY = 1000, 8
KILL_EVERY_S = 5.0
LOAD = ["--prompt-tokens", "300", "--output-tokens", "48", "--concurrency", str(CONCURRENCY), "--seed", "3"]


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    folder.mkdir()
    cluster = Cluster(CONFIGS / "2p2d.yaml", folder)
    try:
        yield cluster
    finally:
        cluster.stop()


def bench(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=cluster.environ, capture_output=True, text=True, timeout=1500)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mooncake_cli.main", "bench", "serve", *LOAD, *arguments, "--json"]


@contextmanager
def killing(cluster: Cluster, victims: list[str], every_s: float) -> Iterator[list[str]]:
    """kill -9, again and again, in another thread."""
    killed: list[str] = []
    stop = threading.Event()
    order = itertools.cycle(random.Random(11).sample(victims, len(victims)))

    def work() -> None:
        while not stop.wait(every_s):
            victim = next(order)
            try:
                cluster.kill(victim)
            except ProcessLookupError:
                continue  # it is just being started again
            killed.append(victim)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_no_request_fails_and_every_token_is_right_while_instances_and_nodes_die(tmp_path: Path) -> None:
    outputs = str(tmp_path / "outputs.jsonl")
    with running(tmp_path / "quiet") as cluster:
        quiet = bench(cluster, "--requests", str(REQUESTS), "--save-outputs", outputs)
        assert quiet.returncode == 0, quiet.stderr
    with running(tmp_path / "storm") as cluster:
        victims = [name for name in names(cluster) if name not in ("master", "gateway")]
        with killing(cluster, victims, KILL_EVERY_S) as killed:
            storm = bench(cluster, "--requests", str(REQUESTS), "--expect-outputs", outputs)
        report = json.loads(storm.stdout)
        print(
            f"\n{report['succeeded']} of {REQUESTS} requests succeeded while {len(killed)} processes were killed "
            f"({', '.join(f'{killed.count(name)} {name}' for name in sorted(set(killed)))}); "
            f"{json.loads(quiet.stdout)['duration_s']:.0f}s undisturbed, {report['duration_s']:.0f}s disturbed"
        )
        assert report["failed"] == {}
        assert storm.returncode == 0, storm.stderr  # 1 if another token came than in the undisturbed run
        assert len(killed) > 5
        wait_for(lambda: cluster.status().num_requests == 0, 60)
        wait_for(lambda: cluster.cache().problems == [], 60)


def test_every_stream_ends_while_the_master_dies(tmp_path: Path) -> None:
    with running(tmp_path / "master") as cluster:
        with killing(cluster, ["master"], 6.0) as killed:
            result = bench(cluster, "--requests", "400", "--timeout", "60s")
        report = json.loads(result.stdout)
        ended = report["succeeded"] + sum(report["failed"].values()) + report["rejected"]
        print(
            f"\nmaster killed {len(killed)} times: {report['succeeded']} of 400 succeeded, failed: {report['failed']}"
        )
        assert ended == 400
        assert not any("timeout" in reason.lower() for reason in report["failed"])
        assert len(killed) > 1
        time.sleep(1)
        wait_for(lambda: cluster.complete("In the beginning")["choices"][0]["finish_reason"] == "length", 60)


def test_a_cluster_that_serves_stops_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "stopped") as cluster:
        pids = [process.pid for process in cluster._state().processes]
        with subprocess.Popen(
            command("--requests", str(REQUESTS)), env=cluster.environ, stdout=subprocess.DEVNULL
        ) as load:
            time.sleep(KILL_EVERY_S)
            assert cluster.status().num_requests > 0
            stopped_s = cluster.stop()
            load.kill()
    print(f"\nstopped in {stopped_s:.1f} s beside {CONCURRENCY} requests")
    assert stopped_s < STOPPED_ALONE_S
    assert not [pid for pid in pids if alive(pid)]


def names(cluster: Cluster) -> list[str]:
    return [process.name for process in cluster._state().processes]
