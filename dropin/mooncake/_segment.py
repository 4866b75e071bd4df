"""The memory that a store contributes: served by a helper process, which ends with this one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from mooncake._network import OPTIONAL
from mooncake_core.config.schema import AuthConfig, ClusterConfig, StoreConfig, TierConfig, TlsConfig, TransferConfig
from mooncake_core.errors import ConfigError, DeadlineExceeded
from mooncake_core.roles.attached_node import AttachedNode
from mooncake_core.roles.parent import Boot
from mooncake_core.store.blocking import BlockingStore
from mooncake_core.units import format_size
from mooncake_core.wire.messages.inspection import GetStatus, Status

READY_S: Final = 30.0
POLL_S: Final = 0.01
LEAST_BYTES: Final = 4 << 10
MOST_BYTES: Final = 1 << 50
MAX_SLOTS: Final = 1 << 20
MIN_SLOTS: Final = 1 << 16


def object_size(capacity_bytes: int) -> int:
    """Smallest mean object the directory has room for: 4 KiB, less in a small segment, more in a huge one."""
    return min(max(4 << 10, capacity_bytes // MAX_SLOTS), max(64, capacity_bytes // MIN_SLOTS))


def free_port(host: str, wanted: int) -> int:
    """The wanted port if it is free, else another one."""
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                if port == 0:
                    raise
                continue
            bound: int = probe.getsockname()[1]
            return bound
    raise AssertionError("a free port raises or is returned")


def attach(
    name: str,
    *,
    capacity_bytes: int,
    host: str,
    data_port: int,
    master: str,
    transports: Sequence[str],
    key_file: str | None,
    tls: TlsConfig | None,
    weights: dict[str, float],
    tiers: Sequence[TierConfig] = (),
    busy_poll_s: float = 0.0,
) -> AttachedNode:
    """Starts the helper. `tiers`: where it puts what its memory has no room for.

    Raises:
        ConfigError: that cannot be a segment; or as AttachedNode.
        DeadlineExceeded: as AttachedNode.
    """
    if not LEAST_BYTES <= capacity_bytes <= MOST_BYTES:
        raise ConfigError(
            f"expected a segment of {format_size(LEAST_BYTES)} to {format_size(MOST_BYTES)}, got {capacity_bytes} bytes"
        )
    optional = [transport for transport in OPTIONAL if transport in transports]
    config = ClusterConfig(
        cluster="attached",
        auth=None if key_file is None else AuthConfig(key_file=key_file),
        store=[
            StoreConfig(
                name=name,
                capacity=capacity_bytes,
                object_size=object_size(capacity_bytes),
                host=host,
                data_port=data_port,
                tiers=list(tiers),
            )
        ],
        prefill=[],
        decode=[],
        transfer=TransferConfig(
            transports=list(transports), optional=optional, tls=tls, weights=weights, busy_poll=busy_poll_s
        ),
    )
    level = os.environ.get("MOONCAKE_LOG_LEVEL", "info")
    return AttachedNode(Boot(config=config, process=name, master_address=master, log_level=level))


def await_writable(store: BlockingStore, name: str) -> None:
    """Returns when the master has read the new segment's directory, and gives out its space.

    Raises:
        DeadlineExceeded: that did not come about.
    """
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        members = store.ask(GetStatus(), Status).members
        if any(member.name == name and member.state == "ready" for member in members):
            return
        time.sleep(POLL_S)
    raise DeadlineExceeded(f"the master did not take the segment of {name} within {READY_S:g}s: its log says why")
