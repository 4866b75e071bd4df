"""A store node with an SSD tier, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiers.store_cluster import DRAM_BYTES, SIZE, store_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


async def test_four_times_dram_comes_back_and_what_the_tier_holds_survives_kill_9(tmp_path: Path) -> None:
    keys = [f"k{number}" for number in range(4 * DRAM_BYTES // SIZE)]
    async with store_cluster(tmp_path) as cluster:
        await cluster.put(keys)
        assert await cluster.read(keys) == set(keys)
        safe = await cluster.in_tier()
        assert len(safe) > len(keys) // 2
        await cluster.kill()
        while len(await cluster.in_tier()) < len(safe):
            pass  # its report comes in parts
        assert await cluster.in_tier() >= safe
        sample = sorted(safe)[::4]
        assert await cluster.read(sample) == set(sample)
        report = await cluster.report()
        assert report.problems == []
        assert report.hits_by_tier["lmdb"] >= len(sample)
        listed = cluster.command("inspect", "cache").stdout
        assert "store\tlmdb" in listed
        assert "hits in lmdb" in listed
