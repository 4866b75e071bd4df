"""RDMA devices of this machine, and which of their ports and GIDs are used. Reads sysfs only, so that it can be tested
anywhere."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mooncake_core.errors import ConfigError, PluginUnavailable

SYSFS: Final = Path("/sys")
MOST_GIDS: Final = 256
"""Of a port's table that are looked at: some devices have thousands of entries, nearly all of them empty."""
ACTIVE: Final = "ACTIVE"
_NO_GID: Final = ipaddress.IPv6Address(0)


class Fabric(enum.StrEnum):
    """What a GID can reach: others of the same kind. The preferred first."""

    INFINIBAND = "infiniband"
    ROCE_V2_IPV4 = "roce-v2-ipv4"
    ROCE_V2_IPV6 = "roce-v2-ipv6"
    ROCE_V2_LINK_LOCAL = "roce-v2-link-local"


_PREFERRED: Final = list(Fabric)


@dataclass(frozen=True, slots=True)
class Gid:
    """One usable entry of a port's table."""

    table_index: int
    address: ipaddress.IPv6Address
    fabric: Fabric


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a device, as the kernel shows it."""

    device: str
    number: int
    state: str
    """As `ACTIVE`, `DOWN`, `INIT`."""
    rate_gbps: float
    numa_node: int
    """-1 where the kernel does not say."""
    gids: tuple[Gid, ...]
    """Those that can be used, the preferred first."""

    def gid(self, fabric: Fabric) -> Gid | None:
        """The first one of a fabric."""
        return next((gid for gid in self.gids if gid.fabric is fabric), None)

    def __str__(self) -> str:
        return f"{self.device}/{self.number}"


def read_ports(sysfs: Path = SYSFS) -> list[Port]:
    """All ports of all RDMA devices, in the order of their names."""
    root = sysfs / "class/infiniband"
    if not root.is_dir():
        return []
    return [
        _port(device, number)
        for device in sorted(root.iterdir(), key=lambda path: _natural(path.name))
        for number in sorted(int(path.name) for path in (device / "ports").iterdir())
    ]


def usable_ports(ports: Sequence[Port], devices: Collection[str] = ()) -> list[Port]:
    """Those to use: of the devices named, or of all where none is, with an active link and a GID that peers can be reached by.

    Raises:
        ConfigError: a device that is named is not there; lists those that are.
        PluginUnavailable: nothing is left; says what was found.
    """
    there = {port.device for port in ports}
    if missing := [device for device in devices if device not in there]:
        raise ConfigError(f"no RDMA device {', '.join(missing)}: this machine has {', '.join(sorted(there)) or 'none'}")
    if not ports:
        raise PluginUnavailable(
            "transport rdma is not available: this machine has no RDMA device (/sys/class/infiniband is empty); "
            "load the NIC's driver, or make a software one: rdma link add rxe0 type rxe netdev eth0",
            kind="transport",
            name="rdma",
        )
    wanted = [port for port in ports if not devices or port.device in devices]
    usable = [port for port in wanted if port.state == ACTIVE and port.gids]
    if not usable:
        found = "; ".join(f"{port} is {port.state} with {len(port.gids)} usable GIDs" for port in wanted)
        raise PluginUnavailable(
            "transport rdma is not available: expected a port that is ACTIVE and has a GID of InfiniBand or RoCE v2, "
            f"found {found}; bring the link up, and give its network interface an address",
            kind="transport",
            name="rdma",
        )
    return usable


def is_active(port: Port, sysfs: Path = SYSFS) -> bool:
    """Whether its link is up now."""
    return _state(sysfs / f"class/infiniband/{port.device}/ports/{port.number}") == ACTIVE


def _port(device: Path, number: int) -> Port:
    folder = device / "ports" / str(number)
    infiniband = _text(folder / "link_layer") == "InfiniBand"
    gids = _infiniband_gids(folder) if infiniband else _roce_gids(folder)
    return Port(
        device=device.name,
        number=number,
        state=_state(folder),
        rate_gbps=_leading_number(_text(folder / "rate")),
        numa_node=int(_leading_number(_text(device / "device/numa_node"), default=-1)),
        gids=tuple(sorted(gids, key=lambda gid: (_PREFERRED.index(gid.fabric), gid.table_index))),
    )


def _state(folder: Path) -> str:
    return _text(folder / "state").partition(": ")[2]


def _infiniband_gids(folder: Path) -> list[Gid]:
    """The first is made of the port's own number; others are aliases of virtual machines."""
    address = _gid(folder / "gids/0")
    return [] if address is None else [Gid(0, address, Fabric.INFINIBAND)]


def _roce_gids(folder: Path) -> list[Gid]:
    """Those of RoCE v2, which is UDP and passes routers; what only speaks v1 is not used."""
    found = []
    for index in sorted(int(path.name) for path in (folder / "gids").iterdir())[:MOST_GIDS]:
        address = _gid(folder / f"gids/{index}")
        if address is not None and _text(folder / f"gid_attrs/types/{index}") == "RoCE v2":
            found.append(Gid(index, address, _roce_fabric(address)))
    return found


def _roce_fabric(address: ipaddress.IPv6Address) -> Fabric:
    if address.ipv4_mapped is not None:
        return Fabric.ROCE_V2_IPV4
    return Fabric.ROCE_V2_LINK_LOCAL if address.is_link_local else Fabric.ROCE_V2_IPV6


def _gid(path: Path) -> ipaddress.IPv6Address | None:
    text = _text(path)
    address = ipaddress.IPv6Address(text) if text else _NO_GID
    return None if address == _NO_GID or int(address) & (1 << 64) - 1 == 0 else address


def _text(path: Path) -> str:
    """Of one file; empty where there is none, or where the kernel has nothing to say (an empty GID has no type)."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _leading_number(text: str, default: float = 0.0) -> float:
    """`100 Gb/sec (4X EDR)` → 100."""
    words = text.split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return default


def _natural(name: str) -> tuple[str, int]:
    """mlx5_2 before mlx5_10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1)
