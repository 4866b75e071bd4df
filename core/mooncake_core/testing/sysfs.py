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
