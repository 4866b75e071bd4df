"""mooncake inspect topology."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mooncake_cli import console
from mooncake_cli.options import config_options, json_option


@click.command(
    "topology", help="Which NICs of this machine are near which memory; `transfer.topology` of a -c FILE overrides it."
)
@config_options
@json_option
def command(config_path: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    from mooncake_core.config.load import load_config
    from mooncake_core.config.schema import ClusterConfig
    from mooncake_core.transfer.host import addresses_in
    from mooncake_core.transfer.topology import Priority, matrix, read_inventory

    named = config_path or os.environ.get("MOONCAKE_CONFIG")
    config = load_config(Path(named), overrides=overrides, environ=os.environ).config if named else ClusterConfig()
    given = {location: Priority(nics.preferred, nics.secondary) for location, nics in config.transfer.topology.items()}
    inventory = read_inventory()
    weights = _weighed(config.transfer.weights, [nic.name for nic in inventory.nics if inventory.has_rdma])
    addresses = addresses_in(config.transfer.networks)
    found = matrix(inventory, given)
    if as_json:
        import msgspec

        devices = {
            kind: [{"name": one.name, "pci": str(one.pci or ""), "numa_node": one.numa_node} for one in some]
            for kind, some in (("nics", inventory.nics), ("gpus", inventory.gpus))
        }
        console.json(
            {
                **devices,
                "matrix": msgspec.to_builtins(found),
                "overridden": sorted(given),
                "tcp": addresses,
                "weights": [{"name": name, "weight": weight, "here": here} for name, weight, here in weights],
            }
        )
        return
    console.table(
        ["memory", "preferred", "secondary", "from"],
        [
            [
                location,
                ", ".join(priority.preferred) or "-",
                ", ".join(priority.secondary) or "-",
                "configuration" if location in given else "sysfs",
            ]
            for location, priority in found.items()
        ],
    )
    if config.transfer.networks:
        console.data(f"tcp, beside each process' own host: {', '.join(addresses) or 'no address in transfer.networks'}")
    if weights:
        console.table(
            ["network or device", "weight", "here"],
            [
                [name, f"{weight:g}" if weight else "0 (banned)", ", ".join(here) or "-"]
                for name, weight, here in weights
            ],
        )


def _weighed(given: dict[str, float], devices: list[str]) -> list[tuple[str, float, list[str]]]:
    """Each key of transfer.weights, and the devices or addresses of this machine that it is about."""
    from mooncake_core.transfer.host import addresses_in
    from mooncake_core.transfer.weights import Weights

    weights = Weights(given)
    return [
        *((name, weight, [name] if name in devices else []) for name, weight in weights.devices.items()),
        *((str(network), weight, addresses_in([str(network)])) for network, weight in weights.networks.items()),
    ]
