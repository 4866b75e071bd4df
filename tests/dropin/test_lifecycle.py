"""A store that is set up from the environment, or with memory of its own, and what it says of what it cannot do."""

from __future__ import annotations

import pytest

from mooncake._arguments import without_effect
from mooncake._settings import settings
from mooncake.store import MooncakeDistributedStore, ObjectDataType, ReplicateConfig
from mooncake_core.transfer.addresses import view_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]
MIB = 1 << 20


def test_init_all_takes_the_rest_from_the_environment(master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_MASTER", master)
    monkeypatch.setenv("MOONCAKE_LOCAL_HOSTNAME", "localhost")
    monkeypatch.setenv("MOONCAKE_GLOBAL_SEGMENT_SIZE", "much")
    monkeypatch.setenv("MOONCAKE_TENANT_ID", "acme")
    store, others = MooncakeDistributedStore(), MooncakeDistributedStore()
    assert store.init_all("tcp", "", 16 * MIB) == 0
    assert store.get_hostname().startswith("localhost:")
    assert store.put("key", b"value") == 0
    assert store.get("key") == b"value"
    assert others.setup(global_segment_size=0, master_server_address=master) == 0
    assert others.is_exist("key") == 0
    assert others.close() == 0
    assert store.close() == 0


def test_a_dummy_has_memory_of_its_own_and_no_segment(master: str) -> None:
    server, dummy = MooncakeDistributedStore(), MooncakeDistributedStore()
    assert dummy.alloc_from_mem_pool(4096) == 0
    assert server.setup("127.0.0.1", "P2PHANDSHAKE", 16 * MIB, MIB, "tcp", "", master) == 0
    assert dummy.setup_dummy(3 * 4096, MIB, master) == 0
    address, other = dummy.alloc_from_mem_pool(8192), dummy.alloc_from_mem_pool(4096)
    assert dummy.alloc_from_mem_pool(1) == 0
    view_of(address, 8192)[:] = bytes(range(256)) * 32
    assert dummy.put_from("dummy", address, 8192) == 0
    assert server.get("dummy") == bytes(range(256)) * 32
    assert server.put("server", b"value") == 0
    assert dummy.get_into("server", other, 4096) == 5
    assert bytes(view_of(other, 5)) == b"value"
    assert dummy.close() == 0
    assert server.get("dummy") == bytes(range(256)) * 32
    assert server.close() == 0


def test_a_dummy_without_a_master_has_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    dummy = MooncakeDistributedStore()
    assert dummy.setup_dummy(4096, MIB, "no port") == -600
    assert "expected host:port" in caplog.text
    assert dummy.alloc_from_mem_pool(4096) == 0


def test_a_file_is_no_segment(caplog: pytest.LogCaptureFixture) -> None:
    mounted = MooncakeDistributedStore().mount_segment("/dev/shm/file", MIB)
    assert mounted == {"ret": -1012, "segment_ids": [], "allocated_size": 0}
    assert "allocate_and_mount_segment makes one of memory" in caplog.text


def test_the_disk_below_a_segment_is_not_unmounted_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    assert MooncakeDistributedStore().unmount_local_disk_segment() == -1012
    assert "unmount that, or close the store" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data_type", ObjectDataType.KVCACHE),
        ("nof_replica_num", 1),
        ("preferred_nof_segments", ["segment"]),
        ("dfs_replica_num", 2),
    ],
)
def test_what_a_config_says_in_vain_is_in_the_log_once(
    caplog: pytest.LogCaptureFixture, name: str, value: object
) -> None:
    without_effect.cache_clear()
    ReplicateConfig()
    assert caplog.text == ""
    for _ in range(2):
        setattr(ReplicateConfig(), name, value)
    assert caplog.text.count(f"ReplicateConfig.{name} has no effect") == 1


@pytest.mark.parametrize(
    ("name", "default", "other"), [("enable_client_http_server", False, True), ("client_http_port", 9300, 9301)]
)
def test_so_is_what_setup_is_told_in_vain(
    caplog: pytest.LogCaptureFixture, name: str, default: object, other: object
) -> None:
    without_effect.cache_clear()
    settings((), {name: default})
    assert caplog.text == ""
    settings((), {name: other})
    assert f"{name} has no effect: the master's HTTP tells about all clients" in caplog.text


def test_so_is_what_segments_are_told_in_vain(master: str, caplog: pytest.LogCaptureFixture) -> None:
    without_effect.cache_clear()
    store = MooncakeDistributedStore()
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master) == 0
    plain = store.allocate_and_mount_segment(MIB)
    assert store.unmount_segment(plain["segment_ids"]) == 0
    assert "has no effect" not in caplog.text
    mounted = store.allocate_and_mount_segment(MIB, "cxl", "cpu:0")
    assert "protocol of allocate_and_mount_segment has no effect" in caplog.text
    assert "location of allocate_and_mount_segment has no effect" in caplog.text
    assert store.unmount_and_free_segment(mounted["segment_ids"], 10) == 0
    assert "grace_period_seconds has no effect: a segment goes at once" in caplog.text
    assert store.close() == 0
