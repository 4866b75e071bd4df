"""Hosts as network namespaces, by scripts/netns-hosts."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).parents[2] / "scripts" / "netns-hosts"
ENVIRON = {**os.environ, "NETNS_HOSTS": f"mooncake{os.getpid() % 10_000}"}


class Host(NamedTuple):
    """One of them."""

    namespace: str
    address: str
    """Its IPv4 one on the first link."""
    address_6: str
    further: tuple[str, ...] = ()
    """Its IPv4 ones on the other links."""

    def carried_bytes(self, link: int) -> int:
        """What has left it and arrived by a link until now."""
        paths = [f"/sys/class/net/eth{link}/statistics/{way}_bytes" for way in ("tx", "rx")]
        command = ["ip", "netns", "exec", self.namespace, "cat", *paths]
        return sum(map(int, subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()))


def why_not() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"{', '.join(missing)} is not installed (Debian: iproute2)" if missing else ""


@contextlib.contextmanager
def hosts(count: int, *, links: int = 1, rate: str = "") -> Generator[list[Host]]:
    """So many, with so many links each; what leaves one by a link, and what arrives, is limited to the rate."""
    lines = [line.split() for line in _do("up", str(count), "--links", str(links)).splitlines()]
    try:
        if rate:
            for number in range(count):
                for link in range(links):
                    _do("shape", str(number), "--link", str(link), "--rate", rate)
        yield [Host(*line[:3], further=tuple(line[3::2])) for line in lines]
    finally:
        _do("down")


def cut(number: int, link: int = 0) -> None:
    """Nothing leaves the host by the link, and nothing arrives."""
    _do("cut", str(number), "--link", str(link))


def restore(number: int, link: int = 0) -> None:
    _do("restore", str(number), "--link", str(link))


def shape(number: int, *limits: str) -> None:
    _do("shape", str(number), *limits)


def _do(*command: str) -> str:
    return subprocess.run([SCRIPT, *command], check=True, env=ENVIRON, stdout=subprocess.PIPE, text=True).stdout
