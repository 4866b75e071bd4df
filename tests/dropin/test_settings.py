"""What `setup` is told, in all its forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mooncake._settings import DEFAULT_MASTER, settings
from mooncake.mooncake_config import MooncakeConfig
from mooncake_core.errors import ConfigError


def test_positional_as_vllm_gives_them() -> None:
    given = ("10.0.0.1", "P2PHANDSHAKE", 4 << 30, 1 << 30, "tcp", "", "10.0.0.2:7801")
    read = settings(given, {"tenant_id": "acme"})
    assert (read.local_hostname, read.global_segment_size, read.local_buffer_size) == ("10.0.0.1", 4 << 30, 1 << 30)
    assert (read.protocol, read.master_server_addr, read.tenant_id) == ("tcp", "10.0.0.2:7801", "acme")


def test_as_sglang_gives_them() -> None:
    engine = object()
    given = ("h:1", "P2PHANDSHAKE", 1 << 30, 16 << 20, "tcp", "", "m:1", engine)
    read = settings(given, {"enable_ssd_offload": False, "ssd_offload_path": "/x"})
    assert (read.engine, read.ssd_offload_path) == (engine, "/x")


@pytest.mark.parametrize("device", ["device_name", "rdma_devices"])
@pytest.mark.parametrize("master", ["master_server_address", "master_server_addr"])
def test_a_dictionary_in_either_naming(device: str, master: str) -> None:
    given = {"local_hostname": "h", "global_segment_size": "3355443200", device: "mlx5_0", master: "m:1"}
    read = settings([given], {})
    assert (read.global_segment_size, read.rdma_devices, read.master_server_addr) == (3355443200, "mlx5_0", "m:1")


@pytest.mark.parametrize(("text", "size"), [("4gb", 4 << 30), ("4GB", 4 << 30), ("512m", 512 << 20), ("0", 0), (7, 7)])
def test_sizes_are_upstreams(text: Any, size: int) -> None:
    assert settings((), {"global_segment_size": text}).global_segment_size == size


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(TypeError, match="'ssd_offload_pth'"):
        settings((), {"ssd_offload_pth": "/x"})
    with pytest.raises(TypeError, match="multiple values for argument 'device_name'"):
        settings((), {"rdma_devices": "a", "device_name": "b"})
    with pytest.raises(TypeError, match="'protocol'"):
        settings((), {"protocol": 7})
    with pytest.raises(TypeError, match="at most 13"):
        settings(range(14), {})
    with pytest.raises(ConfigError, match="local_buffer_size"):
        settings((), {"local_buffer_size": "much"})


def test_the_master_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOONCAKE_MASTER", raising=False)
    assert settings((), {}).master_server_addr == DEFAULT_MASTER
    monkeypatch.setenv("MOONCAKE_MASTER", "m:5")
    assert settings((), {}).master_server_addr == "m:5"
    assert settings((), {"master_server_address": "n:6"}).master_server_addr == "n:6"


def test_the_configuration_of_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MOONCAKE_MASTER", "MOONCAKE_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="MOONCAKE_CONFIG_PATH nor MOONCAKE_MASTER"):
        MooncakeConfig.load_from_env()
    monkeypatch.setenv("MOONCAKE_MASTER", "m:5")
    monkeypatch.setenv("MOONCAKE_GLOBAL_SEGMENT_SIZE", "4gb")
    assert MooncakeConfig.load_from_env() == MooncakeConfig(master_server_address="m:5", global_segment_size=4 << 30)
    path = tmp_path / "mooncake.json"
    path.write_text(json.dumps({"master_server_address": "n:6", "mode": "embedded", "local_buffer_size": "1GB"}))
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(path))
    assert MooncakeConfig.load_from_env() == MooncakeConfig(master_server_address="n:6", local_buffer_size=1 << 30)
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected master_server_address"):
        MooncakeConfig.load_from_env()
