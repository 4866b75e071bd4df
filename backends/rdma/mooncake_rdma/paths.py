"""What a peer needs to reach an export, and which of its ports is reached from which of ours. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from msgspec import Struct

from mooncake_core.transfer.contract import Range
from mooncake_core.transfer.weights import BANNED, Weights
from mooncake_rdma.ports import Fabric, Port

NO_WEIGHTS: Final = Weights()
MOST_KEYS: Final = 16
"""Memory regions that one export makes, or more where devices take none that large: each costs the NIC an entry, and the kernel a
call."""


class PortAddress(Struct, frozen=True, array_like=True):
    """How a port is reached."""

    device: str
    number: int
    rate_gbps: float
    gids: dict[str, bytes]
    """By fabric."""

    def __str__(self) -> str:
        return f"{self.device}/{self.number}"


class RdmaPath(Struct, frozen=True, array_like=True):
    """One export. Its own side keeps to the ranges; the keys hold for the hulls."""

    host: str
    """Of the data connection, over which queue pairs are connected."""
    port: int
    incarnation: int
    export: int
    address: int
    """Of the region's first byte, as the peer's NICs know it; where they know each hull otherwise, at the peer."""
    writable: bool
    starts: list[int]
    ends: list[int]
    """Of the exported ranges, in order."""
    hull_starts: list[int]
    hull_ends: list[int]
    ports: list[PortAddress]
    keys: list[list[int]]
    """For each port, the remote key of each hull."""
    shifts: list[int] = []
    """For each hull, what is to be added to `address`; none where that is nothing. A peer that does not know this field asks for
    addresses that no key holds for, and is refused."""

    def remote_address(self, offset: int, hull: int) -> int:
        """What the peer's NIC is to be asked for a byte of the region that lies in that hull."""
        address = self.address + offset
        return address + self.shifts[hull] if self.shifts else address


class Rail(NamedTuple):
    """One of our ports, and one of the peer's that it reaches; both by their place in the lists."""

    ours: int
    theirs: int
    fabric: Fabric


def address_of_port(port: Port) -> PortAddress:
    """As peers need it."""
    gids = {str(gid.fabric): gid.address.packed for gid in reversed(port.gids)}
    return PortAddress(port.device, port.number, port.rate_gbps, gids)


def hulls(ranges: Sequence[Range], most: int = MOST_KEYS) -> list[Range]:
    """As few as `most` ranges that together cover some that are merged and in order, with the smallest gaps closed."""
    gaps = sorted(range(1, len(ranges)), key=lambda index: ranges[index].offset - _end(ranges[index - 1]))
    closed = set(gaps[: max(0, len(ranges) - most)])
    covering: list[Range] = []
    for index, part in enumerate(ranges):
        if index in closed:
            start = covering.pop().offset
            part = Range(start, _end(part) - start)
        covering.append(part)
    return covering


def divided(ranges: Sequence[Range], most_bytes: int) -> list[Range]:
    """The same bytes in ranges of at most so many."""
    return [
        Range(offset, min(most_bytes, _end(part) - offset))
        for part in ranges
        for offset in range(part.offset, _end(part), most_bytes)
    ]


def rails(ours: Sequence[PortAddress], theirs: Sequence[PortAddress], weights: Weights = NO_WEIGHTS) -> list[Rail]:
    """Pairs of ports with a fabric in common, none of them banned, so that each port of both ends is in one: preferred are
    those whose addresses begin alike (the same subnet), then those of the same name."""
    reached: list[tuple[int, bool, Rail]] = []
    for index, port in enumerate(ours):
        for place, other in enumerate(theirs):
            fabric = next((fabric for fabric in Fabric if fabric in port.gids and fabric in other.gids), None)
            if fabric is not None and weight_of(port, other, fabric, weights):
                bits = _common_bits(port.gids[fabric], other.gids[fabric])
                reached.append((-bits, port.device != other.device, Rail(index, place, fabric)))
    ordered = [rail for _, _, rail in sorted(reached)]
    alone = _pick(ordered, [], both_new=True)
    return _pick(ordered, alone, both_new=False)


def weight_of(ours: PortAddress, theirs: PortAddress, fabric: Fabric, weights: Weights) -> float:
    """That of our device, times that of the network of the peer's address where the fabric has such. Where either end is in a
    banned network it is banned."""
    weight = weights.of_device(ours.device)
    if fabric is Fabric.INFINIBAND:
        return weight
    near, far = (weights.of_address(_host(port.gids[fabric])) for port in (ours, theirs))
    return weight * far if near else BANNED


def _host(gid: bytes) -> str:
    address = IPv6Address(gid)
    return str(address.ipv4_mapped or address)


def _pick(candidates: Sequence[Rail], picked: Sequence[Rail], *, both_new: bool) -> list[Rail]:
    found = list(picked)
    for rail in candidates:
        is_new = (all(rail.ours != other.ours for other in found), all(rail.theirs != other.theirs for other in found))
        if all(is_new) if both_new else any(is_new):
            found.append(rail)
    return found


def _common_bits(one: bytes, other: bytes) -> int:
    """With which two addresses begin."""
    return 128 - (int.from_bytes(one) ^ int.from_bytes(other)).bit_length()


def _end(part: Range) -> int:
    return part.offset + part.length
