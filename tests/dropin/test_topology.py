"""What an engine tells of the machine's network devices."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest

from mooncake._network import weights
from mooncake.engine import TransferEngine
from mooncake_core.transfer.topology import Device, Inventory


def device(name: str, node: int) -> Device:
    return Device(name, PurePosixPath(f"pci0000:{node}0/0000:{node}0:01.0"), node)


SERVER = Inventory([device("mlx5_0", 0), device("mlx5_1", 1)], [device("gpu", 1)], [0, 1], has_rdma=True)


@pytest.mark.parametrize(
    ("named", "near", "far"),
    [
        (None, [["mlx5_0"], ["mlx5_1"]], [["mlx5_1"], ["mlx5_0"]]),
        ("mlx5_1", [[], ["mlx5_1"]], [["mlx5_1"], []]),
        (" mlx5_0, mlx5_1", [["mlx5_0"], ["mlx5_1"]], [["mlx5_1"], ["mlx5_0"]]),
    ],
)
def test_the_topology_is_that_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, named: str | None, near: list[list[str]], far: list[list[str]]
) -> None:
    monkeypatch.setattr("mooncake._engine_lifecycle.read_inventory", lambda: SERVER)
    found = json.loads(TransferEngine().get_local_topology(named))
    assert found == {"cpu:0": near, "cpu:1": far, "cuda:0": far}


def test_without_rdma_no_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    laptop = Inventory([device("eth0", 0)], [], [0])
    monkeypatch.setattr("mooncake._engine_lifecycle.read_inventory", lambda: laptop)
    assert json.loads(TransferEngine().get_local_topology()) == {"cpu:0": [[], []]}


@pytest.mark.parametrize(
    ("devices", "expected"),
    [("", {"eth": 2.0}), (" mlx5_1", {"eth": 2.0, "mlx5_0": 0.0}), ("mlx5_0,mlx5_1", {"eth": 2.0})],
)
def test_devices_that_are_not_named_carry_nothing(
    monkeypatch: pytest.MonkeyPatch, devices: str, expected: dict[str, float]
) -> None:
    monkeypatch.setattr("mooncake._network.read_inventory", lambda: SERVER)
    monkeypatch.setenv("MOONCAKE_WEIGHTS", '{"eth": 2}')
    assert weights(devices) == expected
