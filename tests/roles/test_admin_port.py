"""The master's HTTP port, over real HTTP: what it answers, whom, and that it lets the loop go in between."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from mooncake_core.conductor.conductor import Conductor, ConductorSettings
from mooncake_core.conductor.policies import KVCacheCentric
from mooncake_core.conductor.policies.contract import PolicySettings
from mooncake_core.config.schema import AuthConfig, ClusterConfig, MasterConfig
from mooncake_core.errors import WireError
from mooncake_core.roles.master.cache_report import CacheReporter
from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.roles.master.http import keys
from mooncake_core.roles.master.http.access import Access
from mooncake_core.roles.master.http.keys import SLICE, KeyRoutes
from mooncake_core.roles.master.http.port import AdminPort, open_listener
from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.roles.master.members import Members
from mooncake_core.telemetry.loop_pauses import LoopPauses
from mooncake_core.telemetry.spans import Spans
from mooncake_core.wire.client import Clients
from mooncake_core.wire.messages.membership import Join
from mooncake_core.wire.messages.objects import Described, KeyList, ListKeys
from tests.store.world import SIZE, World, world

TERM = 7
KEYS = ["k0", "k1", "k2"]
MANY = 5000


@asynccontextmanager
async def admin(made: World, config: ClusterConfig | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """The admin port of a world's master."""
    clients = Clients("m")
    members = Members(clients, term=TERM, heartbeat_interval_s=1, lease_s=60)
    await cast(Any, members.handlers()[Join])(
        Join(name="a", role="store", host_id="h", incarnation=1, control_address="tcp://127.0.0.1:5", pid=1), None
    )
    conductor = ConductorDriver(
        Conductor(ConductorSettings(), KVCacheCentric(PolicySettings()), "test", random.Random(0)),
        client_of=lambda name: None,
        address_of=lambda name: "",
        spans=Spans("m"),
    )
    pauses = LoopPauses()
    pauses.note(100.0, 102.5)
    state = MasterState(
        term=TERM,
        address=str(made.address),
        members=members,
        pool=made.driver,
        conductor=conductor,
        cache=CacheReporter(made.driver, conductor),
        pauses=pauses,
    )
    config = config or ClusterConfig()
    port = AdminPort(config, open_listener(config, 0), state)
    try:
        async with httpx.AsyncClient(base_url=port.url) as client:
            yield client
    finally:
        await port.close()
        await members.close()
        await conductor.close()
        await clients.close()


@asynccontextmanager
async def filled(config: ClusterConfig | None = None) -> AsyncIterator[tuple[World, httpx.AsyncClient]]:
    """Nodes a and b, with KEYS; k0 on both."""
    async with world("a", "b") as made, admin(made, config) as client:
        assert (await made.put("k0", replicas=2))[0] == [""]
        assert (await made.put("k1", "k2"))[0] == ["", ""]
        yield made, client


def auth(**master: Any) -> ClusterConfig:
    return ClusterConfig(auth=AuthConfig(), master=MasterConfig(**master))


async def test_keys_are_listed_and_described_by_their_replicas() -> None:
    async with filled() as (made, client):
        listed = await client.get("/get_all_keys")
        assert listed.headers["content-type"].startswith("text/plain")
        assert sorted(listed.text.splitlines()) == KEYS
        found = (await client.get("/query_key?key=k0")).json()
        assert found["success"] is True
        assert {replica["transport_endpoint_"] for replica in found["data"]} == {"a", "b"}
        for replica in found["data"]:
            assert (replica["size_"], replica["protocol_"]) == (SIZE, "tcp")
            view = made.nodes[replica["transport_endpoint_"]][0]._view
            assert b"k0" in bytes(view[replica["buffer_address_"] : replica["buffer_address_"] + 128])
        missing = await client.get("/query_key?key=nothing")
        refused = {"success": False, "error_code": -704, "error_message": "OBJECT_NOT_FOUND"}
        assert (missing.status_code, missing.json()) == (404, refused)


async def test_several_keys_are_described_at_once() -> None:
    async with filled() as (_, client):
        answer = (await client.get("/batch_query_keys?keys=k1,nothing,k0")).json()
        assert answer["success"] is True
        assert list(answer["data"]) == ["k1", "nothing", "k0"]
        assert [len(found["values"] or []) for found in answer["data"].values()] == [1, 0, 2]
        others = {"disk_values": None, "local_disk_values": None, "nof_values": None}
        assert answer["data"]["nothing"] == {"ok": False, "error": "OBJECT_NOT_FOUND", "values": None, **others}
        assert (answer["data"]["k1"]["ok"], answer["data"]["k1"]["error"]) == (True, None)
        assert (await client.get("/batch_query_keys?keys=")).status_code == 400


async def test_segments_are_listed_with_their_fill() -> None:
    async with filled() as (made, client):
        assert (await client.get("/get_all_segments")).text == "a\nb\n"
        capacity, used = made.pool.usage("a")[:2]
        shown = (await client.get("/query_segment?segment=a")).text
        assert shown == f"a\nUsed(bytes): {used}\nCapacity(bytes) : {capacity}\n"
        assert (await client.get("/query_segment?segment=c")).status_code == 500
        details = (await client.get("/get_segments_detail")).json()
        assert details["total_segments"] == 2
        first = details["segments"][0]
        assert (first["segment_name"], first["te_endpoint"], first["status"]) == ("a", "127.0.0.1:5", "OK")
        assert (first["allocator_used_bytes"], first["size_bytes"]) == (used, capacity)
        status = (await client.get("/api/v1/segments/status?segment=b")).json()
        assert (status["success"], status["segment"], status["status_name"]) == (True, "b", "OK")
        unknown = await client.get("/api/v1/segments/status?segment=c")
        assert (unknown.status_code, unknown.json()["error_code"]) == (404, -101)
        assert (await client.get("/api/v1/segments/status")).json()["error_code"] == -600


async def test_all_is_removed_but_what_is_leased_unless_forced() -> None:
    async with filled() as (made, client):
        assert (await made.get("k1"))[0] == [True]
        first = await client.post("/api/v1/remove_all")
        assert (first.status_code, first.json()["success"], first.json()["removed_count"]) == (200, True, 2)
        assert (await client.get("/get_all_keys")).text == "k1\n"
        assert (await client.post("/api/v1/remove_all?force=true")).json()["removed_count"] == 1
        assert (await client.get("/get_all_keys")).text == ""
        assert made.pool.check() == []


async def test_metrics_are_the_figures_of_the_pool() -> None:
    async with filled() as (made, client):
        await made.get("k0", "missing")
        await made.put("k0")
        answer = await client.get("/metrics")
        found = {
            (sample.name, sample.labels.get("node", "")): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        assert found["mooncake_pool_objects", ""] == 3
        assert found["mooncake_pool_puts_total", ""] == 3
        assert found["mooncake_pool_put_bytes_total", ""] == 3 * SIZE
        assert found["mooncake_pool_puts_skipped_total", ""] == 1
        assert found["mooncake_pool_hits_total", ""] == found["mooncake_pool_misses_total", ""] == 1
        assert found["mooncake_pool_hit_bytes_total", ""] == SIZE
        assert found["mooncake_pool_eviction_stalled_rounds_total", ""] == found["mooncake_pool_stalled_nodes", ""] == 0
        for name in ("a", "b"):
            capacity, used, objects, _ = made.pool.usage(name)
            assert found["mooncake_node_capacity_bytes", name] == capacity
            assert found["mooncake_node_used_bytes", name] == used
            assert found["mooncake_node_objects", name] == objects
        assert 'mooncake_tenant_objects{tenant="default"} 3.0' in answer.text
        for name, value in (("hits", 1), ("misses", 1), ("hit_bytes", SIZE)):
            assert f'mooncake_tenant_{name}_total{{tenant="default"}} {value:.1f}' in answer.text
        assert 'mooncake_tier_hits_total{tier="dram"} 1.0' in answer.text
        assert found["mooncake_master_resident_bytes", ""] > 1 << 20
        assert found["mooncake_event_loop_longest_pause_seconds", ""] == 2.5
        assert found["mooncake_master_term", ""] == TERM
        assert "objects=3" in (await client.get("/metrics/summary")).text
        assert 'mooncake_members{role="store",state="ready"} 1.0' in answer.text


async def test_the_only_master_is_the_leader() -> None:
    async with filled() as (made, client):
        leader = {"leader_address": str(made.address), "view_version": TERM}
        assert (await client.get("/health")).json() == {
            "status": "ok",
            "role": "leader",
            "ha_state": "serving",
            "service_ready": True,
            **leader,
        }
        assert (await client.get("/leader")).json() == {"present": True, **leader}
        assert (await client.get("/role")).text == "leader"


async def test_what_is_unknown_is_said_so() -> None:
    async with filled() as (_, client):
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.get("/api/v1/remove_all")).status_code == 405


async def test_with_an_admin_key_nobody_else_is_answered() -> None:
    async with filled(auth(admin_key="secret")) as (_, client):
        assert (await client.get("/health")).status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            refused = await client.get("/get_all_keys", headers=headers)
            assert refused.status_code == 401
            assert "master.admin_key" in refused.json()["error_message"]
        right = {"authorization": "Bearer secret"}
        assert len((await client.get("/get_all_keys", headers=right)).text.splitlines()) == 3
        assert (await client.post("/api/v1/remove_all", headers=right)).json()["removed_count"] == 3


async def test_with_a_cluster_key_alone_this_host_may_look_and_change_nothing() -> None:
    async with filled(auth()) as (_, client):
        assert len((await client.get("/get_all_keys")).text.splitlines()) == 3
        refused = await client.post("/api/v1/remove_all?force=true")
        assert (refused.status_code, "set master.admin_key" in refused.text) == (403, True)
        assert len((await client.get("/get_all_keys")).text.splitlines()) == 3


async def test_a_web_page_changes_nothing() -> None:
    async with filled() as (_, client):
        refused = await client.post("/api/v1/remove_all", headers={"origin": "http://example.com"})
        assert refused.status_code == 403
        assert len((await client.get("/get_all_keys")).text.splitlines()) == 3


@pytest.mark.parametrize(
    ("config", "host"),
    [
        (auth(host="10.0.0.1"), "127.0.0.1"),
        (auth(host="fd00::1"), "::1"),
        (auth(host="127.0.0.2"), "127.0.0.2"),
        (auth(host="10.0.0.1", admin_key="k"), "10.0.0.1"),
        (ClusterConfig(insecure=True, master=MasterConfig(host="10.0.0.1")), "10.0.0.1"),
    ],
)
def test_without_an_admin_key_a_closed_cluster_is_looked_at_from_its_own_host_only(
    config: ClusterConfig, host: str
) -> None:
    assert Access(config).host == host


def test_a_port_in_use_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(WireError, match=r"the admin port cannot listen .*master\.admin_port"):
            open_listener(ClusterConfig(), taken.getsockname()[1])


class ManyKeys:
    """A pool of which it matters only how many keys it is asked for before others get a turn."""

    def __init__(self) -> None:
        self.asked = 0
        self.most_in_a_turn = 0
        self._in_turn = 0

    async def ask(self, message: Any, reply_type: type) -> Any:
        is_list = isinstance(message, ListKeys)
        count = message.limit if is_list else len(message.keys)
        self.asked += count
        self._in_turn += count
        self.most_in_a_turn = max(self.most_in_a_turn, self._in_turn)
        if is_list:
            return KeyList(keys=[f"k{message.cursor}"], cursor=0 if self.asked >= MANY else self.asked)
        return Described(objects=[None] * count)

    async def let_go_on(self) -> None:
        await asyncio.sleep(0)

    async def take_turns(self) -> None:
        while True:
            self._in_turn = 0
            await asyncio.sleep(0)


@pytest.mark.parametrize("route", ["get_all_keys", "batch_query_keys"])
async def test_long_lists_leave_the_loop_to_others_in_between(route: str) -> None:
    state = ManyKeys()
    query = f"keys={','.join(f'k{number}' for number in range(MANY))}".encode()
    turns = asyncio.create_task(state.take_turns())
    answer = await getattr(KeyRoutes(cast(Any, state)), route)(Request({"type": "http", "query_string": query}))
    if route == "get_all_keys":
        assert len(b"".join([part async for part in answer.body_iterator]).splitlines()) == -(-MANY // SLICE)
    else:
        assert len(json.loads(answer.body)["data"]) == MANY
    turns.cancel()
    assert state.asked >= MANY
    assert 0 < state.most_in_a_turn <= SLICE


async def test_a_list_of_several_pages_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "SLICE", 2)
    async with filled() as (made, client):
        assert set((await made.put(*(f"x{number}" for number in range(7))))[0]) == {""}
        listed = (await client.get("/get_all_keys")).text.splitlines()
        assert sorted(listed) == [*KEYS, *(f"x{number}" for number in range(7))]


async def test_quotas_are_shown_set_and_lifted() -> None:
    async with filled() as (made, client):
        path = "/api/v1/tenant_quotas"
        (default,) = (await client.get(path)).json()["data"]
        assert (default["tenant_id"], default["requested_quota_bytes"]) == ("default", None)
        assert default["charged_bytes"] == made.pool.report(0).used_bytes
        answer = await client.put(f"{path}?tenant_id=acme", json={"requested_quota_bytes": 100})
        expected = {
            "tenant_id": "acme",
            "requested_quota_bytes": 100,
            "effective_quota_bytes": 100,
            "charged_bytes": 0,
            "admission_closed": False,
            "over_quota": False,
            "has_explicit_policy": True,
        }
        assert answer.json() == {"success": True, "data": expected}
        assert (await client.get(f"{path}?tenant_id=acme")).json() == {"success": True, "data": expected}
        assert (await client.delete(f"{path}?tenant_id=acme")).json() == {"success": True, "data": None}
        lifted = (await client.get(f"{path}?tenant_id=acme")).json()["data"]
        assert (lifted["requested_quota_bytes"], lifted["has_explicit_policy"]) == (None, False)


async def test_wrong_questions_about_quotas_are_said_so() -> None:
    async with filled() as (_, client):
        path = "/api/v1/tenant_quotas"
        for missing in (await client.get(f"{path}?tenant_id=nobody"), await client.delete(f"{path}?tenant_id=nobody")):
            assert (missing.status_code, missing.json()["error_code"]) == (404, -704)
        for refused in (
            await client.put(path, json={"requested_quota_bytes": 5}),
            await client.put(f"{path}?tenant_id=a", json={"quota": 5}),
            await client.put(f"{path}?tenant_id=a", json={"requested_quota_bytes": -5}),
            await client.put(f"{path}?tenant_id=a", content=b"x"),
        ):
            assert (refused.status_code, refused.json()["error_code"]) == (400, -600)


async def test_tenants_have_keys_of_their_own() -> None:
    async with filled() as (made, client):
        assert (await client.put("/api/v1/tenant_quotas?tenant_id=acme", json={"requested_quota_bytes": 9})).is_success
        assert (await client.get("/get_all_keys?tenant_id=acme")).text == ""
        assert (await client.get("/query_key?key=k0&tenant_id=acme")).status_code == 404
        removed = await client.post("/api/v1/remove_all?force=true&tenant_id=acme")
        assert removed.json()["removed_count"] == 0
        assert made.pool.report(0).num_objects == 3


async def test_a_tenant_that_is_none_is_said_so() -> None:
    async with world("a", quotas={"acme": None}) as made, admin(made) as client:
        for path in ("/get_all_keys", "/query_key?key=k&x=y", "/batch_query_keys?keys=k"):
            unknown = await client.get(f"{path}{'&' if '?' in path else '?'}tenant_id=nobody")
            assert (unknown.status_code, unknown.json()["error_code"]) == (404, -1701)


async def test_a_node_is_drained_by_a_job_and_takes_objects_again_when_it_is_cancelled() -> None:
    async with filled() as (made, client):
        jobs = "/api/v1/drain_jobs"
        created = (await client.post(jobs, json={"segments": ["a"]})).json()
        assert (created["success"], created["job_id"], created["status"]) == (True, "a", "CREATED")
        assert (await client.get("/api/v1/segments/status?segment=a")).json()["status_name"] == "DRAINING"
        job = (await client.get(f"{jobs}/query?job_id=a")).json()
        assert (job["type_name"], job["segments"]) == ("DRAIN", ["a"])
        assert (job["status"], job["status_name"]) in ((2, "RUNNING"), (3, "SUCCEEDED"))
        assert (await client.post(f"{jobs}/cancel?job_id=a")).json()["status"] == "CANCELED"
        assert (await client.get("/api/v1/segments/status?segment=a")).json()["status_name"] == "OK"
        assert made.pool.drain_of("a") is None
        for ended in (await client.get(f"{jobs}/query?job_id=a"), await client.post(f"{jobs}/cancel?job_id=a")):
            assert (ended.status_code, ended.json()["error_code"]) == (404, -1402)


async def test_wrong_questions_about_drains_are_said_so() -> None:
    async with filled() as (made, client):
        jobs = "/api/v1/drain_jobs"
        unknown = await client.post(jobs, json={"segments": ["a", "nobody"]})
        assert (unknown.status_code, unknown.json()["error_code"]) == (404, -101)
        assert made.pool.drain_of("a") is None
        for refused in (
            await client.post(jobs, json={}),
            await client.post(jobs, json={"segments": []}),
            await client.post(jobs, content=b"x"),
            await client.get(f"{jobs}/query"),
        ):
            assert (refused.status_code, refused.json()["error_code"]) == (400, -600)
