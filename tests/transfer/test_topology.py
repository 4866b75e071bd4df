"""The matrix of NICs by location of memory, from trees like those of servers and of a laptop."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from mooncake_cli.main import run
from mooncake_core.testing.sysfs import in_class, numa_nodes, pci_device
from mooncake_core.transfer import host, topology
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.host import addresses_in, local_addresses
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.transfer.topology import Priority, location_of, location_of_gpu, matrix, read_inventory

GPU = {"vendor": "0x10de", "kind": "0x030200"}


def _server(root: Path) -> Path:
    """8 GPUs and 8 NICs, a pair behind each switch, four switches to a socket; and a NIC for storage on a bridge of its own."""
    numa_nodes(root, 2)
    for number in range(8):
        socket, bus = number // 4, 0x10 * (number + 1)
        switch = f"pci0000:{bus:02x}/0000:{bus:02x}:01.0/0000:{bus + 1:02x}:00.0"
        nic = pci_device(root, f"{switch}/0000:{bus + 2:02x}:00.0/0000:{bus + 3:02x}:00.0", numa_node=socket)
        pci_device(root, f"{switch}/0000:{bus + 2:02x}:10.0/0000:{bus + 4:02x}:00.0", numa_node=socket, **GPU)
        in_class(root, "infiniband", f"mlx5_{number}", nic)
    in_class(root, "infiniband", "mlx5_8", pci_device(root, "pci0000:c0/0000:c0:01.0/0000:c1:00.0", numa_node=1))
    return root


def _laptop(root: Path) -> Path:
    """One NUMA node that the kernel does not number, a WLAN card, a GPU, no RDMA."""
    in_class(root, "net", "wlan0", pci_device(root, "pci0000:00/0000:00:14.3", numa_node=-1, vendor="0x8086"))
    (root / "class/net/lo").mkdir(parents=True)
    pci_device(root, "pci0000:00/0000:00:01.0/0000:01:00.0", numa_node=-1, vendor="0x10de", kind="0x030000")
    pci_device(root, "pci0000:00/0000:00:02.0", numa_node=-1, vendor="0x8086", kind="0x030000")  # of the processor
    return root


def test_a_server_with_a_nic_for_each_gpu(tmp_path: Path) -> None:
    found = matrix(read_inventory(_server(tmp_path)))
    nics = [f"mlx5_{number}" for number in range(9)]
    assert found["cpu:0"] == Priority(nics[:4], nics[4:])
    assert found["cpu:1"] == Priority(nics[4:], nics[:4])
    for number in range(8):
        others = [nic for nic in nics if nic != nics[number]]
        assert found[f"cuda:{number}"] == Priority([nics[number]], others)
    assert len(found) == 10


def test_a_gpu_is_found_by_its_place_however_the_process_counts(tmp_path: Path) -> None:
    inventory = read_inventory(_server(tmp_path))
    assert [location_of_gpu(gpu.name, inventory) for gpu in inventory.gpus] == [f"cuda:{number}" for number in range(8)]
    assert location_of_gpu("0000:14:00.0", inventory) == "cuda:0"
    assert location_of_gpu("0000:99:00.0", inventory) == ""


def test_a_gpu_without_a_nic_behind_its_switch_takes_those_of_its_socket(tmp_path: Path) -> None:
    numa_nodes(tmp_path, 2)
    for socket, bus in ((0, "10"), (0, "20"), (1, "80")):
        nic = pci_device(tmp_path, f"pci0000:{bus}/0000:{bus}:01.0/0000:{bus[0]}1:00.0", numa_node=socket)
        in_class(tmp_path, "infiniband", f"nic{bus}", nic)
    pci_device(tmp_path, "pci0000:30/0000:30:01.0/0000:31:00.0", numa_node=0, **GPU)
    assert matrix(read_inventory(tmp_path))["cuda:0"] == Priority(["nic10", "nic20"], ["nic80"])


def test_a_laptop(tmp_path: Path) -> None:
    assert matrix(read_inventory(_laptop(tmp_path))) == {
        "cpu:0": Priority(["wlan0"], []),
        "cuda:0": Priority(["wlan0"], []),
    }


def test_software_devices_are_near_everything(tmp_path: Path) -> None:
    numa_nodes(tmp_path, 2)
    in_class(tmp_path, "infiniband", "rxe0", None)
    assert matrix(read_inventory(tmp_path)) == {"cpu:0": Priority(["rxe0"], []), "cpu:1": Priority(["rxe0"], [])}


def test_a_machine_with_nothing(tmp_path: Path) -> None:
    assert matrix(read_inventory(tmp_path)) == {"cpu:0": Priority([], [])}


def test_memory_has_a_location() -> None:
    memory = SharedMemory("here", 4096)
    memory.view[0] = 1
    assert re.fullmatch(r"cpu:\d+", location_of(address_of(memory.view)))
    assert location_of(0) == "cpu:0"
    memory.close()


def test_the_command_prints_it_and_the_configuration_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = read_inventory(_server(tmp_path / "sys"))
    monkeypatch.setattr(topology, "read_inventory", lambda: inventory)
    config = tmp_path / "c.yaml"
    config.write_text("transfer: {topology: {'cuda:0': {preferred: [mlx5_7], secondary: [mlx5_6]}}}\n")
    assert run(["inspect", "topology", "-c", str(config), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["matrix"]["cuda:0"] == {"preferred": ["mlx5_7"], "secondary": ["mlx5_6"]}
    assert printed["matrix"]["cuda:1"]["preferred"] == ["mlx5_1"]
    assert printed["overridden"] == ["cuda:0"]
    assert [nic["numa_node"] for nic in printed["nics"]] == [0] * 4 + [1] * 5
    assert run(["inspect", "topology"]) == 0
    assert "cuda:7" in capsys.readouterr().out


def test_addresses_are_those_in_the_networks_that_are_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fib_trie").write_text(
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.0\n        /16 link UNICAST\n"
        "     |-- 10.1.0.7\n        /32 host LOCAL\n     |-- 10.2.0.7\n        /32 host LOCAL\n"
        "Local:\n     |-- 10.1.0.7\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n"
    )
    (tmp_path / "if_inet6").write_text(
        "fd000001000000000000000000000007 04 40 00 82     eth0\n"
        "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n"
        "00000000000000000000000000000001 01 80 10 80       lo\n"
    )
    assert [str(address) for address in local_addresses(tmp_path)] == ["10.1.0.7", "10.2.0.7", "fd00:1::7"]
    assert addresses_in(["10.2.0.0/16", "fd00:1::/64", "10.2.0.7/32"], tmp_path) == ["10.2.0.7", "fd00:1::7"]
    assert addresses_in([], tmp_path) == []
    assert addresses_in(["10.3.0.0/16"], tmp_path) == []
    assert "no address in 10.3.0.0/16 of transfer.networks; its addresses: 10.1.0.7" in caplog.text
    assert local_addresses(tmp_path / "missing") == []


def test_inspect_says_which_addresses_carry_tcp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "local_addresses", lambda proc_net: [ip_address("10.1.0.7")])
    config = tmp_path / "c.yaml"
    config.write_text("insecure: true\ntransfer: {networks: [10.1.0.0/16]}\n")
    assert run(["inspect", "topology", "-c", str(config)]) == 0
    assert "tcp, beside each process' own host: 10.1.0.7" in capsys.readouterr().out
    assert run(["inspect", "topology", "-c", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tcp"] == ["10.1.0.7"]


def test_inspect_says_what_weights_are_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = read_inventory(_server(tmp_path / "sys"))
    monkeypatch.setattr(topology, "read_inventory", lambda: inventory)
    monkeypatch.setattr(host, "local_addresses", lambda proc_net: [ip_address("10.1.0.7")])
    config = tmp_path / "c.yaml"
    config.write_text("transfer: {weights: {mlx5_0: 0, mlx5_99: 3, 10.1.0.0/16: 2}}\n")
    assert run(["inspect", "topology", "-c", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == [
        {"name": "mlx5_0", "weight": 0, "here": ["mlx5_0"]},
        {"name": "mlx5_99", "weight": 3, "here": []},
        {"name": "10.1.0.0/16", "weight": 2, "here": ["10.1.0.7"]},
    ]
    assert run(["inspect", "topology", "-c", str(config)]) == 0
    assert "0 (banned)" in capsys.readouterr().out
