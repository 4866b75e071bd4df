"""A store node with an SSD tier, in a process of its own."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from mooncake_core.testing.cluster import Cluster, as_json, wait_for
from mooncake_core.wire.messages.inspection import CacheReport, Decisions, InspectDecisions
from tests.tiers.store_cluster import DRAM_BYTES, SIZE, store_cluster

CONFIGS = Path(__file__).parents[2] / "configs"
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
        assert f"lmdb\t{report.hits_by_tier['lmdb']}\t" in listed
        assert_http_shows(cluster.admin_url, report, sample[0])


def assert_http_shows(url: str, report: CacheReport, key: str) -> None:
    """What the admin port says of the tier."""
    metrics = httpx.get(f"{url}/metrics").text
    (fill,) = report.tiers["store"]
    of_tier = '{index="0",node="store",tier="lmdb"}'
    assert f"mooncake_tier_takes_writes{of_tier} 1.0" in metrics
    assert f"mooncake_tier_objects{of_tier} {float(fill.num_objects)}" in metrics
    assert f'mooncake_tier_hits_total{{tier="lmdb"}} {float(report.hits_by_tier["lmdb"])}' in metrics
    (segment,) = httpx.get(f"{url}/get_segments_detail").json()["segments"]
    assert segment["tiers"][0]["capacity_bytes"] == fill.capacity_bytes
    tiered = {"client_id": "store", "object_size": SIZE, "transport_endpoint": "store"}
    assert httpx.get(f"{url}/query_key?key={key}").json()["local_disk_values"] == [tiered]
    assert httpx.get(f"{url}/batch_query_keys?keys={key}").json()["data"][key]["local_disk_values"] == [tiered]


def test_tokens_from_the_cache_are_told_by_tier(tmp_path: Path) -> None:
    """DRAM has room for some prompts only; the first one comes back from the SSD."""
    node = f"{{capacity: 8MiB, tiers: [{{kind: lmdb, path: {tmp_path / 'ssd'}, capacity: 256MiB, reserve: 0}}]}}"
    settings = [f"{role}.0.local_node={place}" for role, place in (("prefill", node), ("decode", "null"))]
    cluster = Cluster(CONFIGS / "1p1d.yaml", tmp_path, *settings)
    try:
        prompts = [[2 + (number * 7 + index) % 500 for index in range(600)] for number in range(8)]
        for prompt in prompts:
            cluster.complete(prompt, max_tokens=1)
            wait_for(lambda: cluster.cache().num_writing == 0)
        again = cluster.complete(prompts[0], max_tokens=1)
        cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        wait_for(lambda: cluster.cache().cached_tokens == cached)
        report = cluster.cache()
        assert report.cached_tokens_by_tier["lmdb"] > 0
        assert sum(report.cached_tokens_by_tier.values()) == cached == 576
        shown = as_json(cluster.command("inspect", "cache", "--json"))
        assert sum(shown["token_hit_ratio_by_tier"].values()) == pytest.approx(shown["token_hit_ratio"])
        assert f"\t{report.cached_tokens_by_tier['lmdb']}\t" in cluster.command("inspect", "cache").stdout
    finally:
        cluster.stop()


@pytest.mark.parametrize("load_bytes_per_s", [1e9, 1.0])
def test_a_decision_names_the_blocks_below_dram_and_they_are_loaded_only_where_that_pays(
    tmp_path: Path, load_bytes_per_s: float
) -> None:
    tier = f"{{kind: lmdb, path: {tmp_path / 'ssd'}, capacity: 256MiB, reserve: 0}}"
    cluster = Cluster(
        CONFIGS / "mock.yaml",
        tmp_path,
        "prefill.0.count=1",
        "decode=[{engine: {kind: mock, kv_memory: 16MiB}, local_node: null}]",
        f"prefill.0.local_node={{capacity: 512KiB, object_size: 2KiB, tiers: [{tier}]}}",
        f"prefill.0.engine.options.cost.load_bytes_per_s={load_bytes_per_s}",
    )
    try:
        block_tokens = 32  # as in the YAML
        prompts = [[2 + (number * 7 + index) % 500 for index in range(600)] for number in range(12)]
        for prompt in prompts:
            cluster.complete(prompt, max_tokens=1)
            wait_for(lambda: cluster.cache().num_writing == 0)
        wait_for(lambda: cluster.cache().demoted > 0 and settled(cluster))
        cluster.complete(prompts[0], max_tokens=1)
        (decision,) = cluster.ask(InspectDecisions(limit=1), Decisions).decisions
        (winner,) = decision.candidates
        assert decision.best_match_lower_blocks > 0
        assert decision.best_match_blocks == winner.held_blocks == 599 // block_tokens
        report = cluster.cache()
        assert report.cached_tokens == (winner.local_blocks + winner.fetched_blocks) * block_tokens
        loaded = winner.loaded_blocks * block_tokens
        assert report.cached_tokens_by_tier.get("lmdb", 0) == loaded
        if load_bytes_per_s > 1:
            assert winner.loaded_blocks == decision.best_match_lower_blocks
        else:
            assert (winner.loaded_blocks, winner.recomputed_blocks) == (0, winner.held_blocks - winner.local_blocks)
            assert winner.recomputed_blocks >= decision.best_match_lower_blocks
        shown = cluster.command("inspect", "decisions", "--why", decision.request_id).stdout
        assert f"\t{winner.loaded_blocks}\t{winner.recomputed_blocks}\t" in shown
        assert f", {decision.best_match_lower_blocks} of them below DRAM" in shown
    finally:
        cluster.stop()


def settled(cluster: Cluster) -> bool:
    """Whether nothing more moves between tiers."""
    before = cluster.cache()
    time.sleep(0.5)
    after = cluster.cache()
    return (before.demoted, before.tiers) == (after.demoted, after.tiers)
