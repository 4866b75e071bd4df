"""Which NICs are near which memory (FAST'25, section 3.2.3): NICs, NUMA nodes, GPUs and the PCI tree from sysfs, as a matrix of
memory location → preferred and secondary NICs, which configuration can override."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from msgspec import Struct

SYSFS: Final = Path("/sys")
NVIDIA: Final = "0x10de"
DISPLAY_CLASSES: Final = ("0x0300", "0x0302")
"""VGA and 3D controllers."""
NUMA_UNKNOWN: Final = -1

FAR: Final = 1000
OTHER_BRIDGE: Final = 100
"""Steps: from one NUMA node to another, and between host bridges of one. A real path has fewer through the tree."""


class Priority(Struct, frozen=True):
    """NICs for one memory location: the preferred carry all, the secondary ones what is left when those fail."""

    preferred: list[str]
    secondary: list[str]


GET_MEMPOLICY: Final = 239 if platform.machine() == "x86_64" else 236
NODE_OF_ADDRESS: Final = 3
"""MPOL_F_NODE | MPOL_F_ADDR"""
_libc = ctypes.CDLL(None, use_errno=True)

Matrix = dict[str, Priority]
"""By location: `cpu:NODE` for memory of a NUMA node, `cuda:NUMBER` for that of a GPU."""


@dataclass(frozen=True, slots=True)
class Device:
    """A NIC or a GPU, and where it is plugged in."""

    name: str
    pci: PurePosixPath | None
    """From the host bridge down, as pci0000:80/0000:80:01.0/0000:81:00.0; None for one that is on no PCI bus."""
    numa_node: int = NUMA_UNKNOWN


class Inventory(Struct, frozen=True):
    """What sysfs shows."""

    nics: list[Device]
    gpus: list[Device]
    numa_nodes: list[int]
    has_rdma: bool = False
    """Whether the NICs are RDMA devices."""


def read_inventory(sysfs: Path = SYSFS) -> Inventory:
    """RDMA NICs, or where there is none the others; GPUs in the order of their PCI addresses (CUDA's with
    CUDA_DEVICE_ORDER=PCI_BUS_ID, and where all are of one kind)."""
    rdma = _devices(sysfs / "class/infiniband")
    nics = rdma or _devices(sysfs / "class/net")
    nodes = sorted(int(path.name[4:]) for path in (sysfs / "devices/system/node").glob("node[0-9]*"))
    return Inventory(nics, _gpus(sysfs), nodes or [0], bool(rdma))


def matrix(inventory: Inventory, overrides: Mapping[str, Priority] | None = None) -> Matrix:
    """For each location the nearest NICs, and the others; but for the locations in `overrides`."""
    found: Matrix = {}
    for node in inventory.numa_nodes:
        near = [nic.name for nic in inventory.nics if nic.numa_node in (node, NUMA_UNKNOWN)]
        found[f"cpu:{node}"] = _priority(inventory.nics, near)
    for number, gpu in enumerate(inventory.gpus):
        steps = {nic.name: distance(gpu, nic) for nic in inventory.nics}
        nearest = min(steps.values(), default=0)
        found[f"cuda:{number}"] = _priority(inventory.nics, [name for name, far in steps.items() if far == nearest])
    return found | dict(overrides or {})


def distance(one: Device, other: Device) -> int:
    """Steps between two devices: through the switches and bridges that they share, between host bridges, between NUMA nodes."""
    if one.pci is not None and other.pci is not None and one.pci.parts[0] == other.pci.parts[0]:
        shared = sum(1 for _ in _common(one.pci.parts, other.pci.parts))
        return len(one.pci.parts) + len(other.pci.parts) - 2 * shared
    if NUMA_UNKNOWN in (one.numa_node, other.numa_node) or one.numa_node == other.numa_node:
        return OTHER_BRIDGE
    return FAR


def location_of(address: int) -> str:
    """Of memory that the CPU reads: `cpu:NODE`; node 0 where the kernel does not tell."""
    node = ctypes.c_int(0)
    if _libc.syscall(GET_MEMPOLICY, ctypes.byref(node), None, 0, ctypes.c_void_p(address), NODE_OF_ADDRESS):
        return "cpu:0"
    return f"cpu:{node.value}"


def location_of_gpu(pci_address: str, inventory: Inventory) -> str:
    """Of a GPU's memory: `cuda:NUMBER`, as the matrix counts; empty where the GPU is unknown."""
    return next((f"cuda:{number}" for number, gpu in enumerate(inventory.gpus) if gpu.name == pci_address), "")


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    common = []
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        common.append(mine)
    return common


def _priority(nics: Sequence[Device], preferred: Collection[str]) -> Priority:
    return Priority(list(preferred), [nic.name for nic in nics if nic.name not in preferred])


def _devices(folder: Path) -> list[Device]:
    """Those of a class that belong to real hardware; of which the loopback interface is none."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: _natural(path.name)):
        device = path / "device"
        software = folder.name == "infiniband" and not device.exists()
        if device.exists() or software:  # SoftRoCE is no device of a bus, but carries bytes
            found.append(Device(path.name, _pci_path(device), _numa_node(device)))
    return found


def _gpus(sysfs: Path) -> list[Device]:
    root = sysfs / "bus/pci/devices"
    if not root.is_dir():
        return []
    return [
        Device(path.name, _pci_path(path), _numa_node(path))
        for path in sorted(root.iterdir())
        if _text(path / "vendor") == NVIDIA and _text(path / "class")[:6] in DISPLAY_CLASSES
    ]


def _pci_path(device: Path) -> PurePosixPath | None:
    parts = device.resolve().parts
    start = next((index for index, part in enumerate(parts) if part.startswith("pci")), None)
    return None if start is None else PurePosixPath(*parts[start:])


def _numa_node(device: Path) -> int:
    return int(_text(device / "numa_node") or NUMA_UNKNOWN)


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _natural(name: str) -> tuple[str, int]:
    """mlx5_2 before mlx5_10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1)
