"""How much memory a process can still take: of the machine, and of the control groups (containers) it is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

UNLIMITED: Final = 1 << 62


def available_memory_bytes(root: Path = Path("/")) -> int:
    """What can be had without swapping, and without the kernel killing somebody. `root` is where /proc and /sys are."""
    return max(0, min([_machine(root), *_groups(root)]))


def _machine(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return UNLIMITED


def _groups(root: Path) -> Iterator[int]:
    """What is left in each group of this process and in the groups around it."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            group = mount / path.lstrip("/")  # within a container this may be a path of the host's, that is not there
            for folder in [group, *group.parents]:
                if folder.is_relative_to(mount):
                    yield _left(folder)


def _left(group: Path) -> int:
    """Limit minus use, in the words of cgroup v2 or v1; file pages that can be dropped do not count as use."""
    for limit, usage, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            text = (group / limit).read_text().strip()
            if text != "max":
                return int(text) - int((group / usage).read_text()) + _stat(group, inactive)
        except OSError:  # not this version, or not ours to read
            continue
    return UNLIMITED


def _stat(group: Path, name: str) -> int:
    for line in (group / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
