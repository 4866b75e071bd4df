"""How much configuration wants of each link: by network, or by the name of an RDMA device. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

USUAL: Final = 1.0
"""Of what is not named."""
BANNED: Final = 0.0

Network = IPv4Network | IPv6Network


class Weights:
    """A link of weight 2 carries twice as much as it would with 1, beside others; one of weight 0 carries nothing."""

    def __init__(self, given: Mapping[str, float] | None = None) -> None:
        """Keys are networks (as 10.1.0.0/16), or names of devices (as mlx5_0)."""
        self.networks: dict[Network, float] = {}
        self.devices: dict[str, float] = {}
        for name, weight in (given or {}).items():
            network = network_of(name)
            if network is None:
                self.devices[name] = weight
            else:
                self.networks[network] = weight

    def of_address(self, host: str) -> float:
        """That of the smallest network it is in. A host that is a name is in none."""
        if not self.networks:
            return USUAL
        try:
            address = ip_address(host)
        except ValueError:
            return USUAL
        inside = [network for network in self.networks if address in network]
        return self.networks[max(inside, key=lambda network: network.prefixlen)] if inside else USUAL

    def of_device(self, name: str) -> float:
        """That of an RDMA device."""
        return self.devices.get(name, USUAL)


def network_of(name: str) -> Network | None:
    """What a key means; None for the name of a device."""
    try:
        return ip_network(name, strict=False)
    except ValueError:
        return None
