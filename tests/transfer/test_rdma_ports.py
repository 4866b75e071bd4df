"""Which RDMA ports and GIDs are used, from trees like sysfs; and what is said where there is no pyverbs."""

from __future__ import annotations

import ipaddress
import sys
import sysconfig
from pathlib import Path

import pytest

from mooncake_core.config.schema import ClusterConfig, LocationConfig, TransferConfig
from mooncake_core.doctor import Finding, State, Subject
from mooncake_core.errors import ConfigError, PluginUnavailable
from mooncake_core.testing.sysfs import pci_device, rdma_port, write_tree
from mooncake_rdma import doctor
from mooncake_rdma.ports import Fabric, Port, is_active, read_ports, usable_ports
from mooncake_rdma.pyverbs_location import distribution_places, find_pyverbs, make_pyverbs_importable

NONE = "0000:0000:0000:0000:0000:0000:0000:0000"
LINK_LOCAL = "fe80:0000:0000:0000:90c9:24ff:fe21:df8f"
IPV4 = "0000:0000:0000:0000:0000:ffff:c000:0201"
IPV6 = "fd00:0002:0000:0000:0000:0000:0000:0001"
# As a ConnectX shows them: every address once for each version of RoCE.
CONNECTX = {
    0: (LINK_LOCAL, "IB/RoCE v1"),
    1: (LINK_LOCAL, "RoCE v2"),
    2: (IPV4, "IB/RoCE v1"),
    3: (IPV4, "RoCE v2"),
    4: (IPV6, "RoCE v2"),
    5: (NONE, ""),
}


def _ports(root: Path, *files: dict[str, str]) -> list[Port]:
    for part in files:
        write_tree(root, part)
    return read_ports(root)


def test_roce_v2_over_ipv4_is_preferred_then_ipv6_then_link_local(tmp_path: Path) -> None:
    (port,) = _ports(tmp_path, rdma_port("mlx5_0", CONNECTX), {"class/infiniband/mlx5_0/device/numa_node": "1"})
    assert [(gid.table_index, gid.fabric) for gid in port.gids] == [
        (3, Fabric.ROCE_V2_IPV4),
        (4, Fabric.ROCE_V2_IPV6),
        (1, Fabric.ROCE_V2_LINK_LOCAL),
    ]
    assert port.gids[0].address == ipaddress.IPv6Address("::ffff:192.0.2.1")
    assert (port.rate_gbps, port.numa_node, port.state, str(port)) == (100, 1, "ACTIVE", "mlx5_0/1")
    assert port.gid(Fabric.ROCE_V2_IPV6) == port.gids[1]
    assert port.gid(Fabric.INFINIBAND) is None
    assert is_active(port, tmp_path)
    write_tree(tmp_path, {"class/infiniband/mlx5_0/ports/1/state": "1: DOWN"})
    assert not is_active(port, tmp_path)


def test_infiniband_has_the_gid_of_its_port(tmp_path: Path) -> None:
    gids = {0: ("fe80:0000:0000:0000:506b:4b03:00a1:b2c3", "IB/RoCE v1"), 1: (NONE, "")}
    (port,) = _ports(tmp_path, rdma_port("mlx5_0", gids, link_layer="InfiniBand", rate="400 Gb/sec (4X NDR)"))
    assert [(gid.table_index, gid.fabric) for gid in port.gids] == [(0, Fabric.INFINIBAND)]
    assert (port.rate_gbps, port.numa_node) == (400, -1)


def test_an_infiniband_gid_without_a_port_number_is_none(tmp_path: Path) -> None:
    (port,) = _ports(tmp_path, rdma_port("a", {0: ("fe80::", "IB/RoCE v1")}, link_layer="InfiniBand"))
    assert port.gids == ()


def test_ports_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["mlx5_10", "mlx5_2", "mlx5_bond_0"]
    ports = _ports(tmp_path, *[rdma_port(name, CONNECTX) for name in names], rdma_port("mlx5_2", CONNECTX, number=2))
    assert [str(port) for port in ports] == ["mlx5_2/1", "mlx5_2/2", "mlx5_10/1", "mlx5_bond_0/1"]


def test_only_active_ports_with_a_gid_are_used(tmp_path: Path) -> None:
    ports = _ports(
        tmp_path,
        rdma_port("down", CONNECTX, state="1: DOWN"),
        rdma_port("old", {0: (IPV4, "IB/RoCE v1")}),
        rdma_port("good", CONNECTX),
    )
    assert [port.device for port in usable_ports(ports)] == ["good"]
    with pytest.raises(
        PluginUnavailable, match="down/1 is DOWN with 3 usable GIDs; old/1 is ACTIVE with 0 usable GIDs"
    ):
        usable_ports(ports[:1] + ports[2:])


def test_devices_can_be_named_and_have_to_be_there(tmp_path: Path) -> None:
    ports = _ports(tmp_path, rdma_port("a", CONNECTX), rdma_port("b", CONNECTX))
    assert [port.device for port in usable_ports(ports, ["b"])] == ["b"]
    with pytest.raises(ConfigError, match="no RDMA device c: this machine has a, b"):
        usable_ports(ports, ["b", "c"])


def test_a_machine_without_devices_is_told_how_to_get_one(tmp_path: Path) -> None:
    assert read_ports(tmp_path) == []
    with pytest.raises(PluginUnavailable, match="no RDMA device.*rdma link add"):
        usable_ports([])


def _pyverbs(place: Path, abi: str) -> Path:
    write_tree(place, {"pyverbs/__init__.py": "", f"pyverbs/device.{abi}.so": ""})
    return place


def test_the_pyverbs_of_the_distribution_is_found_where_it_fits(tmp_path: Path) -> None:
    abi = sysconfig.get_config_var("SOABI")
    other = _pyverbs(tmp_path / "other", "cpython-39-x86_64-linux-gnu")
    assert find_pyverbs([other, _pyverbs(tmp_path / "own", abi)]) == tmp_path / "own/pyverbs"
    with pytest.raises(PluginUnavailable, match=f"is for cpython-39-x86_64-linux-gnu, this Python is {abi}"):
        find_pyverbs([other])


@pytest.mark.parametrize(
    "place",
    [
        "usr/lib/python3/dist-packages",  # Debian, Ubuntu
        f"usr/lib64/python{sys.version_info.major}.{sys.version_info.minor}/site-packages",  # Fedora, RHEL, SUSE
    ],
)
def test_each_distribution_has_its_place(tmp_path: Path, place: str) -> None:
    _pyverbs(tmp_path / "usr/lib64/python3.6/site-packages", "cpython-36m-x86_64-linux-gnu")
    with pytest.raises(PluginUnavailable, match="the distribution's pyverbs is for cpython-36m-x86_64-linux-gnu"):
        find_pyverbs(distribution_places(tmp_path))
    folder = _pyverbs(tmp_path / place, sysconfig.get_config_var("SOABI")) / "pyverbs"
    assert find_pyverbs(distribution_places(tmp_path)) == folder


def test_without_pyverbs_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        PluginUnavailable, match="pyverbs was not found.*apt-get install python3-pyverbs.*dnf install python3-pyverbs"
    ):
        make_pyverbs_importable([tmp_path])


def _examined(root: Path, *transports: str) -> list[Finding]:
    config = ClusterConfig(transfer=TransferConfig(transports=list(transports))) if transports else None
    return list(doctor.check(Subject(config, root)))


def test_doctor_says_what_keeps_rdma_from_working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "make_pyverbs_importable", lambda: None)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    (skipped,) = _examined(tmp_path)
    assert skipped.state is State.SKIP
    missing, *_ = _examined(tmp_path, "rdma", "tcp")
    assert missing.state is State.FAIL
    assert "rdma link add" in missing.fix
    write_tree(tmp_path / "sys", rdma_port("a", CONNECTX) | rdma_port("b", CONNECTX, state="1: DOWN"))
    found = _examined(tmp_path)
    assert [one.state for one in found] == [State.OK, State.WARN, State.OK, State.WARN]
    assert "a/1 is ACTIVE at 100 Gbit/s, GID ::ffff:c000:201 (roce-v2-ipv4)" in found[0].found
    assert "may pin 8MiB" in found[-1].found
    assert _examined(tmp_path, "rdma")[-1].state is State.FAIL


@pytest.mark.parametrize(
    ("files", "state", "said"),
    [
        ({}, State.WARN, "through memory of the host"),
        ({"sys/module/nvidia_peermem/version": "560"}, State.OK, "by nvidia-peermem"),
        (
            {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560"},
            State.OK,
            "dma-buf",
        ),
        ({"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  560"}, State.WARN, "the host"),
    ],
)
def test_doctor_says_whether_nics_reach_gpus(tmp_path: Path, files: dict[str, str], state: State, said: str) -> None:
    write_tree(tmp_path / "sys", rdma_port("a", CONNECTX))
    assert not any("GPU" in one.found for one in _examined(tmp_path))
    pci_device(tmp_path / "sys", "pci0000:00/0000:01:00.0", numa_node=0, vendor="0x10de", kind="0x030200")
    write_tree(tmp_path, files)
    (found,) = (one for one in _examined(tmp_path) if "GPUDirect" in one.found)
    assert found.state is state
    assert said in found.found
    assert ("modprobe nvidia-peermem" in found.fix) == (state is State.WARN)


def test_doctor_warns_of_devices_that_are_not_there(tmp_path: Path) -> None:
    write_tree(tmp_path / "sys", rdma_port("a", CONNECTX))
    transfer = TransferConfig(
        weights={"a": 2, "c": 0}, topology={"cpu:0": LocationConfig(preferred=["a"], secondary=["d"])}
    )
    warnings = [*doctor.check(Subject(ClusterConfig(transfer=transfer), tmp_path))][:2]
    assert [(warning.state, warning.found) for warning in warnings] == [
        (State.WARN, "transfer.weights: expected an RDMA device, got c; this machine has a"),
        (State.WARN, "transfer.topology.cpu:0: expected an RDMA device, got d; this machine has a"),
    ]


def test_doctor_only_warns_where_a_host_may_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "make_pyverbs_importable", lambda: None)
    transfer = TransferConfig(transports=["rdma", "tcp"], optional=["rdma"])
    assert State.FAIL not in {one.state for one in doctor.check(Subject(ClusterConfig(transfer=transfer), tmp_path))}
