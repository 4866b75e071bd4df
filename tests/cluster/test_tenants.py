"""Tenants of a running cluster: who floods it leaves room for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from mooncake_core.testing.cluster import Cluster, as_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
CONFIG = """
cluster: tenants
model: demo
block_tokens: 32
master: {port: 0, admin_port: null}
gateway: {port: 0, api_keys: {flood: key-of-flood, steady: key-of-steady}}
scheduler: {admission: none, fairness: {reserve: 0.25}}
prefill: [{engine: {kind: mock, kv_memory: 4MiB}, local_node: null}]
decode: [{engine: {kind: mock, kv_memory: 128KiB, options: {cost: {step_base_s: 0.5}}}, local_node: null}]
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    path = tmp_path / "tenants.yaml"
    path.write_text(CONFIG)
    made = Cluster(path, tmp_path)
    yield made
    made.stop()


def test_who_holds_most_of_the_memory_for_decoding_is_the_first_to_be_refused(cluster: Cluster) -> None:
    """Each answer takes half a minute, and two or three of 32 blocks."""
    with ExitStack() as streams:

        def ask(tenant: str) -> httpx.Response:
            body = cluster.body("hello", max_tokens=60, stream=True, model="demo")
            headers = {"authorization": f"Bearer key-of-{tenant}"}
            return streams.enter_context(cluster.http.stream("POST", "/v1/completions", json=body, headers=headers))

        assert ask("steady").status_code == 200
        answer = ask("flood")
        taken = 0
        while answer.status_code == 200 and taken < 20:
            taken, answer = taken + 1, ask("flood")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        answer.read()
        message = answer.json()["error"]["message"]
        assert message.startswith("tenant flood would have ")
        assert "of the tokens to decode, where its share is 50%; 6 of 32 blocks of KV memory would be left" in message
        assert ask("steady").status_code == 200
    decisions = as_json(cluster.command("inspect", "decisions", "--json"))["decisions"]
    rejected = next(one for one in decisions if one["outcome"] == "rejected")
    assert (rejected["tenant"], rejected["reason"]) == ("flood", message)
    why = cluster.command("inspect", "decisions", "--why", rejected["request_id"]).stdout
    assert f"{rejected['request_id']} of tenant flood: rejected" in why
