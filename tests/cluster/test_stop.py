"""Stopping while requests run: they end with a word, nothing new is taken, and it takes seconds at most."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mooncake_core.testing.cluster import STOPPED_S, Cluster, alive, wait_for
from mooncake_core.wire.messages.inspection import Decisions, InspectDecisions

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
MOCK = Path(__file__).parent.parent.parent / "configs" / "mock.yaml"
NOISE = ("Traceback", "CancelledError", "ZMQError", "Cancel 1 running", "goes on elsewhere", "killed")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(MOCK, tmp_path)
    yield made
    made.stop()


class Streams:
    """Requests for long answers, one thread each."""

    def __init__(self, cluster: Cluster, count: int, **options: Any) -> None:
        self.lines: list[list[str]] = [[] for _ in range(count)]
        self.statuses = [0] * count
        body = cluster.body("hello", **{"max_tokens": 4000, "ignore_eos": True, "stream": True, **options})
        self._threads = [
            threading.Thread(target=self._read, args=(cluster.state.gateway_url, body, number))
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()
        wait_for(lambda: all(len(lines) > 5 for lines in self.lines))

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _read(self, url: str, body: dict[str, Any], number: int) -> None:
        with (
            contextlib.suppress(httpx.RemoteProtocolError),  # a gateway that is killed says nothing
            httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer,
        ):
            self.statuses[number] = answer.status_code
            for line in answer.iter_lines():
                if line:
                    self.lines[number].append(line)


def test_streams_end_with_an_error_event_and_all_ends_soon(cluster: Cluster) -> None:
    streams = Streams(cluster, 4)
    pids = [process.pid for process in cluster._state().processes]
    assert cluster.stop() < STOPPED_S
    streams.join()
    for lines in streams.lines:
        error = json.loads(lines[-1].removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("service_unavailable", "unavailable")
        assert "stopping" in error["message"]
    assert not [word for word in NOISE if word in cluster.log], cluster.log
    assert not [pid for pid in pids if alive(pid)]


def test_new_requests_are_refused_while_old_ones_finish(cluster: Cluster) -> None:
    streams = Streams(cluster, 1)
    cluster.process.terminate()
    time.sleep(0.5)
    answer = cluster.http.post("/v1/completions", json=cluster.body("hello", model="demo"))
    assert answer.status_code == 503
    assert "stopping" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
    assert not cluster.http.get("/ready").json()["ready"]
    streams.join()


def test_a_request_that_ends_soon_is_answered_in_full(cluster: Cluster) -> None:
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(cluster.complete("hello", max_tokens=60, ignore_eos=True)))
    asking.start()
    wait_for(lambda: cluster.status().num_requests == 1)
    cluster.process.terminate()
    asking.join()
    assert answers[0]["usage"]["completion_tokens"] == 60


def test_a_second_ctrl_c_ends_at_once(cluster: Cluster) -> None:
    streams = Streams(cluster, 1)
    pids = [process.pid for process in cluster._state().processes]
    cluster.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    second = time.monotonic()
    cluster.process.send_signal(signal.SIGINT)
    cluster.process.wait(10)
    assert time.monotonic() - second < 3.0
    streams.join()
    assert not [pid for pid in pids if alive(pid)]


def test_an_instance_told_to_stop_finishes_its_work_and_gets_no_more(cluster: Cluster) -> None:
    streams = Streams(cluster, 1, max_tokens=400)
    name = cluster.ask(InspectDecisions(limit=1), Decisions).decisions[0].decode
    group = f"crowd-group-{int(name[-1]) // 3}" if name.startswith("crowd") else name
    pid = cluster.pid(group)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: any(member.state == "draining" and member.name == name for member in cluster.status().members))
    for number in range(12):
        cluster.complete([5 + number] * 40)
    decided = cluster.ask(InspectDecisions(limit=12), Decisions).decisions
    assert name not in {decision.decode for decision in decided}
    streams.join()
    assert streams.lines[0][-1] == "data: [DONE]"


def test_a_gateway_that_is_stopped_for_longer_than_its_lease_keeps_its_streams(tmp_path: Path) -> None:
    cluster = Cluster(MOCK, tmp_path, "master.lease=1s", "master.heartbeat_interval=250ms")
    try:
        streams = Streams(cluster, 2, max_tokens=600)
        pid = cluster.pid("gateway")
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: "gateway is gone: it was silent for 1s" in cluster.log)
        time.sleep(1.0)
        assert cluster.status().num_requests == 2
        os.kill(pid, signal.SIGCONT)
        streams.join()
        assert all(lines[-1] == "data: [DONE]" for lines in streams.lines)
        assert "goes on elsewhere" not in cluster.log
        streams = Streams(cluster, 2)
        cluster.kill("gateway")
        wait_for(lambda: cluster.status().num_requests == 0, 30)
        streams.join()
    finally:
        cluster.stop()
