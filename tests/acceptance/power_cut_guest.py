"""What runs in the virtual machine whose power is cut: says what the tier on its disk has kept, then writes on until the end.

It leaves in the folder of the first argument: kept.json, what was found; log.txt, a line for each event, written before the
next one begins: `written SECOND NUMBER` after an object was written, `safe SECOND NUMBER` when all up to that number had been
written before a sync that has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from mooncake_core.store.tiers.contract import NewTierObject, TierKey, TierObject, TierSettings
from mooncake_nvme import LmdbTier

MOUNT = Path("/mnt/power-cut")
CAPACITY_BYTES = 192 << 20
OBJECT_BYTES = 256 << 10
BATCH = 4
SYNC_INTERVAL_S = 1.0


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(OBJECT_BYTES)


def open_tier() -> LmdbTier:
    MOUNT.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "/dev/vda", str(MOUNT)], check=True)
    return LmdbTier(TierSettings(owner="n", path=str(MOUNT), capacity_bytes=CAPACITY_BYTES, reserve_bytes=0))


def names(tier: LmdbTier) -> Iterator[TierKey]:
    cursor: str | None = ""
    while cursor is not None:
        part = tier.list_objects(cursor)
        yield from (about.name for about in part.objects)
        cursor = part.cursor


def kept(tier: LmdbTier) -> dict[str, list[int]]:
    """Numbers of the objects that it lists: right ones, wrong ones, and those it lists but does not return."""
    found: dict[str, list[int]] = {"right": [], "wrong": [], "refused": []}
    target = bytearray(OBJECT_BYTES)
    for name in list(names(tier)):
        if not tier.read(name, memoryview(target)):
            found["refused"].append(int(name.key))
        else:
            found["right" if bytes(target) == content(int(name.key)) else "wrong"].append(int(name.key))
    return found


def made(number: int) -> NewTierObject:
    data = content(number)
    checksum = xxhash.xxh3_64_intdigest(data)
    about = TierObject(key=str(number), allocation_id=number + 1, size_bytes=OBJECT_BYTES, checksum=checksum)
    return NewTierObject(about, memoryview(data))


def write_on(tier: LmdbTier, log: int, first: int) -> None:
    number, synced_at = first, time.monotonic()
    while True:
        batch = [made(number + index) for index in range(BATCH)]
        assert all(tier.write(batch).stored), tier.usage()
        number += BATCH
        os.write(log, b"written %f %d\n" % (time.monotonic(), number - 1))
        if time.monotonic() - synced_at >= SYNC_INTERVAL_S:
            synced_at = time.monotonic()
            tier.sync()
            os.write(log, b"safe %f %d\n" % (time.monotonic(), number - 1))


def main() -> None:
    out, first = Path(sys.argv[1]), int(sys.argv[2])
    tier = open_tier()
    (out / "kept.json").write_text(json.dumps(kept(tier)))
    write_on(tier, os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), first)


if __name__ == "__main__":
    main()
