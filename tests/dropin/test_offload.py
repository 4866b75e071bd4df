"""The SSD below a store's segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mooncake._offload import offload_tiers
from mooncake._settings import settings
from mooncake.store import MooncakeDistributedStore
from mooncake_core.errors import ConfigError
from mooncake_core.testing.cluster import wait_for
from tests.dropin.conftest import running_master

pytest.importorskip("lmdb", reason="the SSD tier needs lmdb")
MIB = 1 << 20
VALUES = {f"key-{number}": bytes([number]) * MIB for number in range(24)}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FILE_STORAGE_PATH", "BUCKET_MAX_TOTAL_SIZE", "TOTAL_SIZE_LIMIT_BYTES"):
        monkeypatch.delenv(f"MOONCAKE_OFFLOAD_{name}", raising=False)


def tiers_of(**given: Any) -> list[tuple[str, int]]:
    return [(tier.path, tier.capacity) for tier in offload_tiers(settings((), {"enable_ssd_offload": True, **given}))]


def test_an_ssd_is_bounded_by_default() -> None:
    assert tiers_of(global_segment_size=1 << 30, ssd_offload_path="/ssd") == [("/ssd", 10 << 30)]
    assert tiers_of(global_segment_size=MIB, ssd_offload_path="/ssd") == [("/ssd", 1 << 30)]


def test_upstreams_variables_name_folder_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONCAKE_OFFLOAD_FILE_STORAGE_PATH", "/from-environment")
    monkeypatch.setenv("MOONCAKE_OFFLOAD_BUCKET_MAX_TOTAL_SIZE", "0")
    monkeypatch.setenv("MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES", str(5 << 30))
    assert tiers_of(global_segment_size=MIB) == [("/from-environment", 5 << 30)]
    monkeypatch.setenv("MOONCAKE_OFFLOAD_BUCKET_MAX_TOTAL_SIZE", "2gb")
    assert tiers_of(global_segment_size=MIB, ssd_offload_path="/said") == [("/said", 2 << 30)]
    monkeypatch.setenv("MOONCAKE_OFFLOAD_BUCKET_MAX_TOTAL_SIZE", "much")
    with pytest.raises(ConfigError, match="MOONCAKE_OFFLOAD_BUCKET_MAX_TOTAL_SIZE"):
        tiers_of(global_segment_size=MIB, ssd_offload_path="/said")


def test_without_a_segment_nothing_goes_to_an_ssd(caplog: pytest.LogCaptureFixture) -> None:
    assert tiers_of(global_segment_size=0, ssd_offload_path="/ssd") == []
    assert "contributes no segment" in caplog.text


@pytest.mark.cluster
@pytest.mark.timeout(60)
def test_what_memory_has_no_room_for_is_read_from_the_ssd_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES", str(256 * MIB))
    ssd = tmp_path / "ssd"
    with running_master(tmp_path, "pool: {read_lease: 100ms}\n") as master:
        store, beside = connect(master, ssd), connect(master, ssd)
        for key, value in VALUES.items():
            wait_for(lambda key=key, value=value: store.put(key, value) == 0)
        assert any(place.is_local_disk_replica() for key in VALUES for place in store.get_replica_desc(key))
        for key, value in VALUES.items():
            wait_for(lambda key=key, value=value: store.get(key) == value)
        assert sorted(path.name for path in ssd.iterdir()) == ["node-0", "node-1"]
        on_ssd = {key for key in VALUES for place in store.get_replica_desc(key) if place.is_local_disk_replica()}
        store.close()
        beside.close()
        again, beside = connect(master, ssd), connect(master, ssd)
        wait_for(lambda: all(again.is_exist(key) == 1 for key in on_ssd))
        for key in on_ssd:
            wait_for(lambda key=key: again.get(key) == VALUES[key])
        assert sorted(path.name for path in ssd.iterdir()) == ["node-0", "node-1"]
        again.close()
        beside.close()


@pytest.mark.cluster
@pytest.mark.timeout(60)
def test_what_lies_on_the_ssd_of_a_segment_is_cleared_there(tmp_path: Path) -> None:
    with running_master(tmp_path, "pool: {read_lease: 100ms}\n") as master:
        store = connect(master, tmp_path / "ssd")
        for key, value in VALUES.items():
            wait_for(lambda key=key, value=value: store.put(key, value) == 0)
        wait_for(lambda: any(place.is_local_disk_replica() for place in store.get_replica_desc("key-0")))
        other = connect(master, tmp_path / "ssd")
        assert store.batch_replica_clear(["key-0", "key-23", "none"], other.get_hostname()) == []
        assert store.batch_replica_clear(["key-0", "key-23", "none"], store.get_hostname()) == ["key-0", "key-23"]
        assert store.batch_is_exist(["key-0", "key-23"]) == [0, 0]
        other.close()
        store.close()


def connect(master: str, ssd: Path) -> Any:
    store = MooncakeDistributedStore()
    given = {"master_server_address": master, "global_segment_size": 8 * MIB, "enable_ssd_offload": "true"}
    assert store.setup({**given, "ssd_offload_path": str(ssd)}) == 0
    return store
