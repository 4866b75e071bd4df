"""Whether the folders of tiers `lmdb` are on a local disk that has room for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mooncake_core.config.schema import TierConfig
from mooncake_core.doctor import Finding, Subject, fail, ok, skip, warn
from mooncake_core.doctor.places import tiers_here
from mooncake_core.units import format_size

NETWORKS: Final = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre")
MEMORY: Final = ("tmpfs", "ramfs")


def check(subject: Subject) -> Iterator[Finding]:
    tiers = list(tiers_here(subject.config, "lmdb")) if subject.config else []
    if not tiers:
        yield skip(
            "no node for this machine has a tier lmdb" if subject.config else "give -c FILE to look at its tiers"
        )
    for setting, count, tier in tiers:
        yield _finding(f"{setting}: {tier.path}", count, tier, subject.root)


def _finding(place: str, count: int, tier: TierConfig, root: Path) -> Finding:
    folder = _existing(Path(tier.path).absolute())
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return fail(
            f"{place} cannot be written: {folder}: {error.strerror}", "make the folder, and give it to this user"
        )
    kind = _file_system(folder, root)
    if kind in NETWORKS:
        return fail(
            f"{place} is on {kind}, a file system of a network", "name a folder on a local disk: LMDB maps its index"
        )
    wanted_bytes = count * tier.capacity + tier.reserve - _used(Path(tier.path))
    free_bytes = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    said = f"{place} ({kind}) has {format_size(free_bytes)} free"
    if free_bytes < wanted_bytes:
        return warn(f"{said}; capacity and reserve want {format_size(wanted_bytes)}", "lower `capacity`, or make room")
    if kind in MEMORY:
        return warn(f"{said}, but that is memory, not a disk", "name a folder on an SSD")
    return ok(said)


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _used(path: Path) -> int:
    """Bytes on the disk that nodes' tiers there have already taken."""
    return sum(file.stat().st_blocks * 512 for file in path.glob("*/*") if file.is_file())


def _file_system(folder: Path, root: Path) -> str:
    """Its type: that of the mount with the longest path above it; of two at one place the later."""
    mounts = [line.split()[1:3] for line in (root / "proc/self/mounts").read_text().splitlines()]
    real = folder.resolve()
    above = [(len(Path(path).parts), kind) for path, kind in mounts if real.is_relative_to(path)]
    longest = max(length for length, _ in above)
    return [kind for length, kind in above if length == longest][-1]
