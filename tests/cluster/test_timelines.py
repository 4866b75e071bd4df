"""Where the time of a request went, as users see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mooncake_core.testing.cluster import Cluster, as_json, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(240)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"
PROMPT = [2 + (index * 31) % 2000 for index in range(2000)]


@pytest.fixture(scope="module", params=["shm", "tcp"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp(request.param)
    cluster = Cluster(CONFIGS / "1p1d.yaml", folder, f"transfer.transports=[{request.param}]")
    yield cluster
    cluster.stop()


def send(cluster: Cluster, **headers: str) -> tuple[str, dict[str, Any]]:
    body = cluster.body(PROMPT, max_tokens=4, ignore_eos=True)
    answer = cluster.http.post("/v1/completions", json=body, headers={"x-mooncake-timings": "1", **headers})
    return answer.headers["x-request-id"], answer.json()


def test_layers_travel_while_later_ones_are_computed(cluster: Cluster, tmp_path: Path) -> None:
    request_id, answer = send(cluster)
    assert answer["mooncake"]["exposed_s"] < answer["mooncake"]["computed_s"]
    path = tmp_path / "trace.json"
    assert cluster.command("inspect", "requests", request_id, "--chrome-trace", str(path)).returncode == 0
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    sent = [event for event in events if event["name"] == "send to decode"]
    transport = cluster.folder.name.rstrip("0123456789")
    put = [event for event in events if event["name"] == "put to pool"]
    assert {event["args"]["path"] for event in [*sent, *put]} == {transport}
    waited = [event for event in events if event["name"] == "wait for engine"]
    assert len({event["pid"] for event in waited}) == len(waited) == 2  # in prefill and in decode
    chunks = [event for event in events if event["name"] == "compute chunk"]
    assert sum(chunk["args"]["tokens"] for chunk in chunks) == len(PROMPT)
    layers = {int(event["name"].split()[1]) for event in events if event["name"].startswith("layer ")}
    parts = [(event["args"]["first_layer"], event["args"]["layers"]) for event in sent]
    assert layers == {layer for first, count in parts for layer in range(first, first + count)}
    for chunk in chunks:
        under = [event for event in sent if chunk["ts"] <= event["ts"] < chunk["ts"] + chunk["dur"]]
        early = {event["args"]["first_layer"] for event in under} - {max(layers)}
        assert early, f"no layer left while the chunk at {chunk['args']['start']} was computed"
    assert {"request", "place", "reserve memory", "put to pool", "wait for KV", "decode step"} <= {
        event["name"] for event in events
    }


def test_a_fetched_prefix_says_its_path_and_bytes(cluster: Cluster) -> None:
    send(cluster)
    wait_for(lambda: cluster.cache().num_writing == 0)
    request_id, answer = send(cluster)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 1984
    spans = as_json(cluster.command("inspect", "requests", request_id, "--json"))["spans"]
    fetched = [span for span in spans if span["name"] == "fetch prefix"]
    assert [span["attributes"]["layer"] for span in fetched] == [0, 1, 2, 3]
    (located,) = [span["attributes"] for span in spans if span["name"] == "locate prefix"]
    assert located["found"] == located["blocks"] == fetched[0]["attributes"]["blocks"]
    transport = cluster.folder.name.rstrip("0123456789")
    assert {span["attributes"]["path"] for span in fetched} == {transport}
    assert all(span["attributes"]["bytes"] > 0 for span in fetched)


def test_the_same_answer_comes_when_kv_moves_as_a_whole(cluster: Cluster) -> None:
    _, by_layer = send(cluster)
    request_id, whole = send(cluster, **{"x-mooncake-kv-transfer": "whole"})
    assert whole["choices"][0]["text"] == by_layer["choices"][0]["text"]
    spans = as_json(cluster.command("inspect", "requests", request_id, "--json"))["spans"]
    sent = [span for span in spans if span["name"] == "send to decode"]
    assert {span["attributes"]["layers"] for span in sent} == {4}


def test_requests_are_listed_and_unknown_ones_are_said_to_be(cluster: Cluster) -> None:
    request_id, _ = send(cluster)
    listed = as_json(cluster.command("inspect", "requests", "--json"))["requests"]
    assert listed[0]["request_id"] == request_id
    assert listed[0]["outcome"] == "length"
    result = cluster.command("inspect", "requests", request_id)
    assert "decode step" in result.stdout
    assert cluster.command("inspect", "requests", request_id[:12]).stdout == result.stdout
    missing = cluster.command("inspect", "requests", "nobody")
    assert missing.returncode == 1
    assert "nobody knows a request nobody" in missing.stderr


def test_decisions_are_found_by_the_beginning_of_an_id(cluster: Cluster) -> None:
    for _ in range(17):  # of so many hexadecimal ids, two begin alike
        request_id, _ = send(cluster)
    listed = cluster.command("inspect", "decisions").stdout.splitlines()
    assert "matched local+fetched/blocks" in listed[0].split("\t")
    assert listed[1].split("\t")[0] == request_id[:12]
    found = as_json(cluster.command("inspect", "decisions", request_id[:12], "--json"))["decisions"]
    assert [decision["request_id"] for decision in found] == [request_id]
    shown = cluster.command("inspect", "decisions", request_id[:12]).stdout
    assert f"{request_id}: dispatched by policy kvcache-centric\nprefill: all " in shown
    assert "candidate\t\tlocal\tfetched\tloaded\trecomputed\tqueue\ttransfer\tprefill\tttft\tfree blocks" in shown
    assert "candidate\t\ttbt\tfree blocks" in shown
    assert (
        cluster.command("inspect", "decisions", "--why", request_id[:12]).stdout.splitlines()[2:]
        == (shown.splitlines()[2:])
    )
    assert cluster.command("inspect", "decisions", "--why").stdout.count("candidate\t\tlocal") >= 17
    digits = [line[0] for line in listed[1:]]
    digit = max(digits, key=digits.count)
    for kind in ("decisions", "requests"):
        ambiguous = cluster.command("inspect", kind, digit)
        assert ambiguous.returncode == 2
        assert f"requests begin with {digit}: give more of the id" in ambiguous.stderr
    unknown = cluster.command("inspect", "decisions", "nobody")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no decision about a request nobody is kept" in unknown.stderr


def test_a_check_of_the_cache_says_that_it_passed(cluster: Cluster) -> None:
    send(cluster)
    assert "check\tpassed: every byte is accounted for" in cluster.command("inspect", "cache", "--check").stdout
    assert as_json(cluster.command("inspect", "cache", "--check", "--json"))["check_passed"] is True
    assert "check_passed" not in as_json(cluster.command("inspect", "cache", "--json"))
    entries = cluster.command("inspect", "cache", "--limit", "5").stdout.partition("key\t")[2].splitlines()[1:]
    assert {entry.split("\t")[4] for entry in entries} <= {"yes", "no"}
    assert entries
    key = entries[0].split("\t")[0]
    found = as_json(cluster.command("inspect", "cache", key, "--json"))["object"]
    assert (found["key"], len(found["replicas"])) == (key, 1)
    assert f"object\t{key}\n" in cluster.command("inspect", "cache", key).stdout
    assert cluster.command("inspect", "cache", "nothing").returncode == 1


def test_the_prefix_that_is_read_most_is_shown_by_its_first_block(cluster: Cluster) -> None:
    send(cluster)
    _, answer = send(cluster)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    hottest = as_json(cluster.command("inspect", "cache", "--json"))["hottest"][0]
    head = as_json(cluster.command("inspect", "cache", hottest["head"], "--json"))["object"]
    assert head["parent"] == ""
    assert hottest["reads"] >= 1
    assert hottest["num_objects"] > 1
