"""Trees like the kernel's sysfs, for tests of what reads it on machines that have no such devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Writes files, by their path below `root`; which is returned."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def rdma_port(
    device: str,
    gids: Mapping[int, tuple[str, str]],
    *,
    number: int = 1,
    link_layer: str = "Ethernet",
    state: str = "4: ACTIVE",
    rate: str = "100 Gb/sec (4X EDR)",
) -> dict[str, str]:
    """The files of one port of an RDMA device. `gids`: index → address as the kernel writes it, and its type."""
    port = f"class/infiniband/{device}/ports/{number}"
    files = {f"{port}/link_layer": link_layer, f"{port}/state": state, f"{port}/rate": rate}
    for index, (address, kind) in gids.items():
        files[f"{port}/gids/{index}"] = address
        files[f"{port}/gid_attrs/types/{index}"] = kind
    return files


def pci_device(root: Path, path: str, *, numa_node: int, vendor: str = "0x15b3", kind: str = "0x020000") -> Path:
    """A device of the PCI bus below `root`, at a path as pci0000:00/0000:00:01.0/0000:01:00.0; returned as sysfs has it."""
    folder = root / "devices" / path
    write_tree(folder, {"vendor": vendor, "class": kind, "numa_node": str(numa_node)})
    _link(root / "bus/pci/devices" / folder.name, folder)
    return folder


def in_class(root: Path, kind: str, name: str, device: Path | None) -> None:
    """A device of a class, as `infiniband` or `net`; one of software has no `device`."""
    if device is None:
        (root / "class" / kind / name).mkdir(parents=True)
    else:
        _link(root / "class" / kind / name / "device", device)


def numa_nodes(root: Path, count: int) -> None:
    """So many."""
    for number in range(count):
        (root / f"devices/system/node/node{number}").mkdir(parents=True)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
