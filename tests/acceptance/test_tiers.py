"""Objects on an SSD: kill -9 at random moments, and how fast it is: `scripts/acceptance tiers`."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from mooncake_core.store.tiers.contract import NewTierObject, TierObject, TierSettings
from mooncake_nvme import LmdbTier
from tests.tiers.store_cluster import store_cluster

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1800)]
KILLS = 50
LONGEST_S = 1.5
SAMPLE = 20
OBJECT_BYTES = 1 << 20
NUM_OBJECTS = 256
BATCH = 16
ROUNDS = 10
WRITE_RATIO, READ_RATIO = 0.7, 0.5


async def test_no_object_is_lost_and_no_byte_is_wrong_through_fifty_kills(tmp_path: Path) -> None:
    """The node dies while it writes, and with every death is started again a little later."""
    moments = random.Random(5)
    safe: set[str] = set()
    async with store_cluster(tmp_path, capacity="2GiB") as cluster:
        writing = asyncio.create_task(cluster.put(f"k{number}" for number in itertools.count()))
        for kill in range(KILLS):
            await asyncio.sleep(moments.uniform(0, LONGEST_S))
            safe |= await cluster.in_tier()
            await cluster.kill()
            while not safe <= (found := await cluster.in_tier()):
                await asyncio.sleep(0.01)  # its report comes in parts; a loss runs into the test's timeout
            sample = moments.sample(sorted(safe), min(SAMPLE, len(safe)))
            assert await cluster.read(sample) == set(sample), f"lost after kill {kill}"
        writing.cancel()
        assert await cluster.read(sorted(safe)) == safe
        assert (await cluster.report()).problems == []
    print(f"\n{KILLS} kills, {len(found)} objects in the tier, every one of {len(safe)} right")


def test_the_tier_is_about_as_fast_as_a_plain_file_and_as_memory(tmp_path: Path) -> None:
    """Both write the same bytes in the same batches and end on the disk; reads come from the page cache."""
    pairs = [(write_tier(tmp_path / f"t{i}"), write_file(tmp_path / f"f{i}")) for i in range(ROUNDS)]
    writes = statistics.median(file_s / tier_s for tier_s, file_s in pairs)
    reads = statistics.median(copy_s / read_s for read_s, copy_s in read_pairs(tmp_path / "reads"))
    print(
        f"\nLMDB writes {NUM_OBJECTS} objects of {OBJECT_BYTES >> 10} KiB at {writes:.2f} of a plain file of the same size "
        f"(expected {WRITE_RATIO}), and reads cached ones at {reads:.2f} of memcpy (expected {READ_RATIO}); "
        f"medians of {ROUNDS} pairs"
    )
    assert writes >= WRITE_RATIO
    assert reads >= READ_RATIO


def objects() -> list[NewTierObject]:
    """Bytes that no file system can compress."""
    made = []
    for number in range(NUM_OBJECTS):
        data = os.urandom(OBJECT_BYTES)
        about = TierObject(
            key=f"k{number}",
            allocation_id=number + 1,
            size_bytes=OBJECT_BYTES,
            checksum=xxhash.xxh3_64_intdigest(data),
        )
        made.append(NewTierObject(about, memoryview(data)))
    return made


OBJECTS: list[NewTierObject] = []


def batches() -> Iterator[list[NewTierObject]]:
    if not OBJECTS:
        OBJECTS.extend(objects())
    for start in range(0, NUM_OBJECTS, BATCH):
        yield OBJECTS[start : start + BATCH]


def tier_at(path: Path) -> LmdbTier:
    return LmdbTier(TierSettings(owner="n", path=str(path), capacity_bytes=1 << 30, reserve_bytes=0))


def write_tier(path: Path) -> float:
    tier = tier_at(path)
    parts = list(batches())
    began = time.perf_counter()
    for part in parts:
        assert all(tier.write(part).stored)
    tier.sync()
    took_s = time.perf_counter() - began
    tier.close()
    (path / "n" / "objects.data").unlink()
    return took_s


def write_file(path: Path) -> float:
    """With the same promise: each batch is on the disk before the next one."""
    parts = list(batches())
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            for item in part:
                file.write(item.data)
            os.fdatasync(file.fileno())
    took_s = time.perf_counter() - began
    path.unlink()
    return took_s


def read_pairs(path: Path) -> Iterator[tuple[float, float]]:
    tier = tier_at(path)
    for part in batches():
        tier.write(part)
    target = memoryview(bytearray(OBJECT_BYTES))
    for _ in range(ROUNDS + 1):  # the first one brings everything to memory
        began = time.perf_counter()
        for item in OBJECTS:
            assert tier.read(item.about.name, target)
        read_s = time.perf_counter() - began
        began = time.perf_counter()
        for item in OBJECTS:
            target[:] = item.data
        yield read_s, time.perf_counter() - began
    tier.close()
