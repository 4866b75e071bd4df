"""Hosts as network namespaces, each with a link of a given rate to one bridge. Needs root, and `ip` and `tc`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator

PREFIX = f"mooncake{os.getpid() % 10_000}"


def why_not() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"{', '.join(missing)} is not installed (Debian: iproute2)" if missing else ""


@contextlib.contextmanager
def hosts(count: int, *, megabits_per_s: int) -> Generator[list[tuple[str, str]]]:
    """(namespace, address) of each host; what leaves one, and what arrives, is limited to the rate."""
    bridge = f"{PREFIX}-bridge"
    names = [f"{PREFIX}-{number}" for number in range(count)]
    made: list[str] = []
    try:
        for name in (bridge, *names):
            _run("ip", "netns", "add", name)
            made.append(name)
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "br0", "up")
        for number, name in enumerate(names):
            port = f"port{number}"
            _run("ip", "-n", bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "-n", bridge, "link", "set", port, "master", "br0", "up")
            _run("ip", "-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", link, "up")
            for where, device in ((name, "eth0"), (bridge, port)):
                limit = ["rate", f"{megabits_per_s}mbit", "burst", "1mb", "latency", "50ms"]
                _run("tc", "-n", where, "qdisc", "add", "dev", device, "root", "tbf", *limit)
        yield [(name, f"10.77.0.{number + 1}") for number, name in enumerate(names)]
    finally:
        for name in reversed(made):
            subprocess.run(["ip", "netns", "del", name], check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
