"""This host: which processes count as being on it, and its addresses."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final

PROC_NET: Final = Path("/proc/net")
_SOURCES = (Path("/proc/sys/kernel/random/boot_id"), Path("/etc/machine-id"))

_log = logging.getLogger(__name__)


def default_host_id() -> str:
    """Equal for processes of one boot of one machine in one network namespace; configuration can override it."""
    parts = [source.read_text().strip() for source in _SOURCES if source.is_file()]
    parts.append(os.readlink("/proc/self/ns/net") if os.path.exists("/proc/self/ns/net") else "")
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def addresses_in(networks: Sequence[str], proc_net: Path = PROC_NET) -> list[str]:
    """Of this host's addresses those in any of the networks, in the order of these. A network in which it has none is only
    warned of: a NIC may be missing."""
    found: dict[str, None] = {}
    own = local_addresses(proc_net) if networks else []
    for text in networks:
        inside = [str(address) for address in own if address in ip_network(text, strict=False)]
        if not inside:
            listed = ", ".join(map(str, own)) or "none"
            _log.warning("this host has no address in %s of transfer.networks; its addresses: %s", text, listed)
        found |= dict.fromkeys(inside)
    return [*found]


def local_addresses(proc_net: Path = PROC_NET) -> list[IPv4Address | IPv6Address]:
    """Those of this network namespace, but for loopback and link-local ones."""
    table = proc_net / "fib_trie"
    text = table.read_text() if table.is_file() else ""
    numbers = re.findall(r"\|-- ([\d.]+)\n\s+/32 host LOCAL", text)
    table = proc_net / "if_inet6"
    lines = table.read_text().splitlines() if table.is_file() else []
    found = [ip_address(number) for number in numbers] + [IPv6Address(int(line.split()[0], 16)) for line in lines]
    return [*dict.fromkeys(one for one in found if not (one.is_loopback or one.is_link_local))]
