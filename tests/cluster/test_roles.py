"""Instances change their roles in a running cluster, and no request is lost by it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mooncake_core.testing.cluster import Cluster, as_json, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

CONFIG = """
cluster: roles
model: demo
master: {port: 0, admin_port: 0, heartbeat_interval: 200ms}
gateway: {port: 0, patience: 60s}
prefill: [{count: 2, per_process: 2, engine: {kind: mock, kv_memory: 4MiB}, local_node: null}]
decode: [{count: 2, per_process: 2, engine: {kind: mock, kv_memory: 4MiB}, local_node: null}]
scheduler: {plan_roles: true, ttft_slo: 30s, tbt_slo: 1s}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    config = tmp_path / "roles.yaml"
    config.write_text(CONFIG)
    made = Cluster(config, tmp_path)
    yield made
    made.stop()


def roles(cluster: Cluster) -> dict[str, str]:
    members = as_json(cluster.command("status", "--json"))["members"]
    return {one["name"]: one["role"] for one in members if one["role"] in ("prefill", "decode")}


def test_an_emptied_pool_gets_an_instance_and_requests_wait_for_it(cluster: Cluster) -> None:
    answer = cluster.complete("In the beginning", max_tokens=20)
    assert roles(cluster) == {
        "prefill-0": "prefill",
        "prefill-1": "prefill",
        "decode-0": "decode",
        "decode-1": "decode",
    }
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(cluster.complete, "In the beginning", max_tokens=20) for _ in range(8)]
        for name in ("prefill-0", "prefill-1"):
            switched = cluster.command("admin", "role", name, "decode")
            assert switched.returncode == 0, switched.stderr
        running += [pool.submit(cluster.complete, "In the beginning", max_tokens=20) for _ in range(8)]
        assert all(done.result()["choices"] == answer["choices"] for done in running)
    wait_for(lambda: sorted(roles(cluster).values()) == ["decode", "decode", "decode", "prefill"])
    assert cluster.cache().problems == []
    unknown = cluster.command("admin", "role", "prefill-9", "decode")
    assert unknown.returncode == 2
    assert "expected the name of a prefill or decode instance, got prefill-9" in unknown.stderr
