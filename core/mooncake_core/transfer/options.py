"""What may be said of the paths by which bytes go, wherever an engine is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypedDict

from mooncake_core.transfer.contract import TlsFiles, Transport
from mooncake_core.transfer.topology import Priority


class PathOptions(TypedDict, total=False):
    """All may be left out."""

    transports: Sequence[str | type[Transport]]
    """The preferred first."""
    optional: Collection[str]
    """Those of them that this machine may do without: where something that they need is missing, the log says so."""
    further_hosts: Sequence[str]
    """Addresses of further NICs, over which tcp transfers go as well."""
    connections_per_peer: int
    """Over tcp."""
    weights: Mapping[str, float] | None
    """Of networks (as 10.1.0.0/16) and RDMA devices, beside 1 for the others; 0 carries nothing."""
    topology: Mapping[str, Priority] | None
    """The NICs of memory locations (as cpu:0); those of others are read from sysfs."""
    tls: TlsFiles | None
    """Connections over tcp are encrypted, and peers have a certificate of the same authority."""
    busy_poll_s: float
    """How long a thread looks for what comes next before it sleeps."""
