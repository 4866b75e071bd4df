"""How a process is reached, as the arguments of upstream's calls and the environment say it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from mooncake_core.address import HostPort, parse_host_port
from mooncake_core.errors import ConfigError
from mooncake_core.units import parse_duration

NETWORKS: Final = {"tcp": ("shm", "tcp"), "shm": ("shm", "tcp"), "rdma": ("shm", "rdma", "tcp")}


def key_file() -> str | None:
    """Of the cluster's key."""
    return os.environ.get("MOONCAKE_KEY_FILE") or None


def is_trusted() -> bool:
    """Whether memory may be open to the network without a key."""
    return os.environ.get("MOONCAKE_INSECURE", "").lower() in ("1", "true", "yes")


def busy_poll_s() -> float:
    """How long to look for an answer before sleeping until it comes.

    Raises:
        ConfigError: $MOONCAKE_BUSY_POLL is no duration.
    """
    try:
        return parse_duration(os.environ.get("MOONCAKE_BUSY_POLL") or 0.0)
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
