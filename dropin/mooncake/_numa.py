"""Keeping a program on one NUMA node."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from pathlib import Path
from typing import Final

NODES: Final = Path("/sys/devices/system/node")
PREFERRED: Final = 1
"""MPOL_PREFERRED: memory comes from that node while it has some."""
SET_MEMPOLICY: Final = {"x86_64": 238, "aarch64": 237}

_log = logging.getLogger("mooncake.store")


def bind_to_numa_node(node: int) -> None:
    """Runs this thread, and those it starts, on the node's processors, with memory preferably from there. Where there is no
    such node nothing changes, and the log says so."""
    try:
        processors = _processors((NODES / f"node{node}" / "cpulist").read_text())
        os.sched_setaffinity(0, processors)
    except (OSError, ValueError) as error:
        _log.warning("cannot bind to NUMA node %d: %s", node, error)
        return
    number = SET_MEMPOLICY.get(platform.machine())
    if number is not None:
        mask = ctypes.c_ulong(1 << node)
        ctypes.CDLL(None).syscall(number, PREFERRED, ctypes.byref(mask), ctypes.sizeof(mask) * 8)


def _processors(text: str) -> set[int]:
    """The numbers in a list like 0-3,8."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
