"""How a process is reached, as the arguments of upstream's calls and the environment say it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Final

import msgspec

from mooncake_core import busy_poll
from mooncake_core.address import HostPort, parse_host_port
from mooncake_core.config.schema import TlsConfig
from mooncake_core.errors import ConfigError
from mooncake_core.transfer.topology import read_inventory
from mooncake_core.units import parse_duration

TLS_VARIABLES: Final = {
    "certificate": "MOONCAKE_TLS_CERTIFICATE",
    "key": "MOONCAKE_TLS_KEY",
    "ca": "MOONCAKE_TLS_CA",
}
NETWORKS: Final = {"tcp": ("shm", "tcp"), "shm": ("shm", "tcp"), "rdma": ("shm", "rdma", "tcp")}
OPTIONAL: Final = ("rdma",)
"""What a machine without the hardware does without; the log says so."""


def key_file() -> str | None:
    """Of the cluster's key."""
    return os.environ.get("MOONCAKE_KEY_FILE") or None


def tls_config(given: Mapping[str, str] | None = None) -> TlsConfig | None:
    """Of connections over tcp: those given, or else the environment's; None where neither names any.

    Raises:
        ConfigError: some are named and others are not; says which.
    """
    named = {name: (given or {}).get(name) or os.environ.get(variable, "") for name, variable in TLS_VARIABLES.items()}
    missing = [variable for name, variable in TLS_VARIABLES.items() if not named[name]]
    if len(missing) == len(named):
        return None
    if missing:
        raise ConfigError(
            f"expected the three files that TLS needs ({', '.join(TLS_VARIABLES.values())}), there is no "
            f"{' and no '.join(missing)}: name all of them, or none where the cluster has no transfer.tls"
        )
    return TlsConfig(**named)


def weights(devices: str = "") -> dict[str, float]:
    """Of networks and RDMA devices, as transfer.weights of the cluster. Where RDMA `devices` are named, with commas, this
    machine's others carry nothing.

    Raises:
        ConfigError: $MOONCAKE_WEIGHTS is something else.
    """
    text = os.environ.get("MOONCAKE_WEIGHTS") or "{}"
    try:
        given = msgspec.json.decode(text, type=dict[str, Annotated[float, msgspec.Meta(ge=0)]])
    except msgspec.MsgspecError as error:
        raise ConfigError(f'MOONCAKE_WEIGHTS: expected JSON as {{"10.1.0.0/16": 2}}, got {text!r}: {error}') from error
    named = names_in(devices)
    if not named:
        return given
    inventory = read_inventory()
    others = [nic.name for nic in inventory.nics if inventory.has_rdma and nic.name not in named]
    return {**given, **dict.fromkeys(others, 0.0)}


def names_in(text: str) -> list[str]:
    """Those of a list with commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def is_trusted() -> bool:
    """Whether memory may be open to the network without a key."""
    return os.environ.get("MOONCAKE_INSECURE", "").lower() in ("1", "true", "yes")


def busy_poll_s() -> float:
    """How long to look for an answer before sleeping until it comes.

    Raises:
        ConfigError: $MOONCAKE_BUSY_POLL is no duration, or too long a one.
    """
    try:
        return busy_poll.checked(parse_duration(os.environ.get("MOONCAKE_BUSY_POLL") or 0.0))
    except ValueError as error:
        raise ConfigError(f"MOONCAKE_BUSY_POLL: {error}") from None


def transports_of(protocol: str) -> tuple[str, ...]:
    """Transports to use, the preferred first. MC_FORCE_TCP=1 leaves out the others.

    Raises:
        ConfigError: there is no such protocol.
    """
    if os.environ.get("MC_FORCE_TCP", "").lower() in ("1", "true"):
        return ("tcp",)
    try:
        return NETWORKS[protocol or "tcp"]
    except KeyError:
        raise ConfigError(f"protocol: expected one of {', '.join(NETWORKS)}, got {protocol!r}") from None


def split_hostname(hostname: str) -> HostPort:
    """Host and port, 0 where none is given."""
    with suppress(ValueError):
        return parse_host_port(hostname)
    return HostPort(hostname.strip("[]") or "127.0.0.1", 0)
