"""The memory a store contributes: whose process it is in, how it ends, who may reach it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mooncake.store import MooncakeDistributedStore, ReplicateConfig, TaskStatus
from mooncake_core.testing.cluster import alive, wait_for
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.messages.inspection import GetStatus, Status
from mooncake_core.wire.sync import SyncClient
from tests.dropin.conftest import running_master

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
MIB = 1 << 20

CONTRIBUTES = """
import sys
from mooncake.store import MooncakeDistributedStore, ReplicateConfig, TaskStatus
store = MooncakeDistributedStore()
assert store.setup("127.0.0.1", "P2PHANDSHAKE", 16 << 20, 1 << 20, "tcp", "", sys.argv[1]) == 0
print(store.get_hostname(), flush=True)
sys.stdin.read()
"""


def connect(master: str, segment_bytes: int = 0) -> Any:
    store = MooncakeDistributedStore()
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, MIB, "tcp", "", master) == 0
    return store


def helpers(master: str) -> dict[str, int]:
    """Node → process, of those the master knows."""
    client = SyncClient(f"tcp://{master}", name="test")
    try:
        members = client.call(GetStatus(), Status, timeout_s=10).members
        return {member.name: member.pid for member in members if member.role == "store"}
    finally:
        client.close()


def pid_of(master: str, store: Any) -> int:
    return helpers(master)[store.get_hostname().replace(":", "-")]


def test_a_closed_store_takes_its_segment_along(master: str) -> None:
    store = connect(master, 16 * MIB)
    pid = pid_of(master, store)
    assert store.close() == 0
    assert not alive(pid)
    assert pid not in helpers(master).values()


def test_a_segment_takes_turns_with_the_threads_of_its_program_and_is_spared_its_ctrl_c(master: str) -> None:
    store = connect(master, 16 * MIB)
    pid = pid_of(master, store)
    assert os.getsid(pid) == os.getsid(0)
    assert os.getpgid(pid) == pid
    assert store.close() == 0


def test_who_looks_before_sleeping_puts_and_gets(master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_BUSY_POLL", "100us")
    store = connect(master, 16 * MIB)
    values = {f"looked-{size}": os.urandom(size) for size in (1, 4096, MIB)}
    for key, value in values.items():
        assert store.put(key, value) == 0
        assert store.get(key) == value
    assert store.close() == 0


def test_an_environment_that_cannot_be_is_refused(master: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("MOONCAKE_BUSY_POLL", "soon")
    assert MooncakeDistributedStore().setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master) != 0
    assert "MOONCAKE_BUSY_POLL: expected a duration like 30s, 100ms or 5m, got 'soon'" in caplog.text
    monkeypatch.setenv("MOONCAKE_BUSY_POLL", "100")
    assert MooncakeDistributedStore().setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master) != 0
    assert "MOONCAKE_BUSY_POLL: expected a duration of at most 10ms, as 100us, got 100s" in caplog.text


def test_so_does_one_that_nobody_holds_any_more(master: str) -> None:
    store = connect(master, 16 * MIB)
    pid = pid_of(master, store)
    del store
    gc.collect()
    wait_for(lambda: not alive(pid))


def test_a_killed_program_leaves_no_helper(master: str) -> None:
    command = [sys.executable, "-c", CONTRIBUTES, master]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as program:
        assert program.stdout is not None
        name = program.stdout.readline().strip().replace(":", "-")
        pid = helpers(master)[name]
        program.kill()
    wait_for(lambda: not alive(pid))


def test_a_helper_that_dies_is_started_again(master: str) -> None:
    store = connect(master, 16 * MIB)
    assert store.put("before", b"value") == 0
    pid = pid_of(master, store)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid not in helpers(master).values() and bool(helpers(master)))
    wait_for(lambda: store.put("after", b"value") == 0)
    assert store.get("before") == b""
    assert store.get("after") == b"value"
    store.close()


def test_segments_come_and_go_at_run_time(master: str) -> None:
    store = connect(master)
    assert store.put("none", b"value") == -200
    mounted = store.allocate_and_mount_segment(16 * MIB)
    assert mounted["ret"] == 0
    assert store.put("some", b"value") == 0
    assert store.unmount_and_free_segment(mounted["segment_ids"]) == 0
    assert store.get("some") == b""
    assert store.unmount_segment(mounted["segment_ids"]) == -101
    store.close()


@pytest.mark.parametrize(("kind", "replicas"), [("copy", 2), ("move", 1)])
def test_an_object_goes_to_another_segment(master: str, kind: str, replicas: int) -> None:
    store, other = connect(master, 16 * MIB), connect(master, 16 * MIB)
    here, there = store.get_hostname(), other.get_hostname()
    config = ReplicateConfig(preferred_segment=here)
    assert store.put(kind, b"value", config) == 0
    if kind == "copy":
        task, code = store.create_copy_task(kind, [there])
    else:
        task, code = store.create_move_task(kind, here, there)
    assert code == 0
    wait_for(lambda: store.query_task(task)[0].status == TaskStatus.SUCCESS)
    assert store.query_task(task)[0].message == ""
    places = [place.get_memory_descriptor().buffer_descriptor for place in store.get_replica_desc(kind)]
    assert there in [place.transport_endpoint for place in places]
    assert len(places) == replicas
    assert store.get(kind) == b"value"
    other.close()
    store.close()


def test_more_memory_than_there_is_says_so(master: str, caplog: pytest.LogCaptureFixture) -> None:
    store = MooncakeDistributedStore()
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 1 << 50, MIB, "tcp", "", master) == -600
    assert "lower its capacity" in caplog.text


def test_an_open_segment_wants_a_key(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("MOONCAKE_KEY_FILE", raising=False)
    store = MooncakeDistributedStore()
    assert store.setup("10.0.0.1", "P2PHANDSHAKE", MIB, MIB, "tcp", "", "10.0.0.2:7801") == -600
    assert "set MOONCAKE_KEY_FILE" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "carrier-pigeon"}, "expected one of tcp, shm, rdma"),
        ({"master_server_address": "etcd://1.2.3.4"}, "expected host:port"),
        ({"enable_ssd_offload": True, "global_segment_size": MIB}, "give ssd_offload_path"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    master: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.delenv("MOONCAKE_OFFLOAD_FILE_STORAGE_PATH", raising=False)
    given = {"global_segment_size": 0, "master_server_address": master, **change}
    assert MooncakeDistributedStore().setup(given) == -600
    assert said in caplog.text


def test_without_an_rdma_device_bytes_go_over_the_other_transports(master: str, caplog: Any) -> None:
    store = MooncakeDistributedStore()
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 16 * MIB, MIB, "rdma", "", master) == 0
    assert "does without: transport rdma is not available" in caplog.text
    assert store.put("key", b"value") == 0
    assert store.get("key") == b"value"
    store.close()


@pytest.mark.parametrize("size", [-1, 0, 10])
def test_what_cannot_be_a_segment_says_so(master: str, caplog: Any, size: int) -> None:
    store = connect(master)
    assert store.allocate_and_mount_segment(size) == {"ret": -600, "segment_ids": [], "allocated_size": 0}
    assert f"expected a segment of 4KiB to 1024TiB, got {size} bytes" in caplog.text
    store.close()


def test_the_smallest_segment_has_room_for_an_object(master: str) -> None:
    store = connect(master)
    mounted = store.allocate_and_mount_segment(4096)
    assert mounted["ret"] == 0
    assert store.put("small", bytes(3000), ReplicateConfig(preferred_segment=mounted["segment_ids"][0])) == 0
    (place,) = store.get_replica_desc("small")
    assert place.get_memory_descriptor().buffer_descriptor.transport_endpoint == mounted["segment_ids"][0]
    assert store.get("small") == bytes(3000)
    store.close()


def test_the_key_of_the_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    ClusterKey.generate().write(path)
    with running_master(tmp_path, f"auth: {{key_file: {path}}}\n") as master:
        monkeypatch.delenv("MOONCAKE_KEY_FILE", raising=False)
        stranger = MooncakeDistributedStore()
        assert stranger.setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master) == -900
        monkeypatch.setenv("MOONCAKE_KEY_FILE", str(path))
        store = connect(master, 16 * MIB)
        assert store.put("key", b"value") == 0
        assert store.get("key") == b"value"
        store.close()


def test_tenants_do_not_see_each_other(master: str) -> None:
    store = connect(master, 16 * MIB)
    tenant = MooncakeDistributedStore()
    given = ("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master)
    assert tenant.setup(*given, tenant_id="acme") == 0
    assert tenant.put("key", b"acme's") == 0
    assert store.is_exist("key") == 0
    assert store.put("key", b"ours") == 0
    assert (tenant.get("key"), store.get("key")) == (b"acme's", b"ours")
    tenant.close()
    store.close()
