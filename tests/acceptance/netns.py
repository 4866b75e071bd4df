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


def why_not() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"{', '.join(missing)} is not installed (Debian: iproute2)" if missing else ""


@contextlib.contextmanager
def hosts(count: int, *, rate: str = "") -> Generator[list[Host]]:
    """So many; what leaves one, and what arrives, is limited to the rate."""
    lines = _do("up", str(count)).splitlines()
    try:
        if rate:
            for number in range(count):
                _do("shape", str(number), "--rate", rate)
        yield [Host(*line.split()[:3]) for line in lines]
    finally:
        _do("down")


def cut(number: int) -> None:
    """Nothing leaves the host, and nothing arrives."""
    _do("cut", str(number))


def restore(number: int) -> None:
    _do("restore", str(number))


def shape(number: int, *limits: str) -> None:
    _do("shape", str(number), *limits)


def _do(*command: str) -> str:
    return subprocess.run([SCRIPT, *command], check=True, env=ENVIRON, stdout=subprocess.PIPE, text=True).stdout
