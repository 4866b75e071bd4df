"""What each policy expects of instances, and whom it prefers."""

from __future__ import annotations

import numpy as np
import pytest

from mooncake_core.conductor.cost import CostModel, PrefillCosts
from mooncake_core.conductor.policies import (
    CacheAware,
    KVCacheCentric,
    LeastLoaded,
    Random,
    RoundRobin,
    ShortestQueue,
)
from mooncake_core.conductor.policies.contract import Policy, PolicySettings, PrefillViews, RequestView
from mooncake_core.kvcache.prefix_index import Lengths
from mooncake_core.wire.messages.membership import CostHint

CACHED, IDLE, BUSY = range(3)


def views(local: list[int], queue_s: list[float], *, block_s: float = 0.02) -> PrefillViews:
    """A token takes 10 ms, a block of 10 tokens `block_s` to fetch."""
    hint = CostHint(
        prefill_base_s=0.0, prefill_per_token_s=0.01, prefill_per_token2_s=0.0, fetch_bytes_per_s=1 / block_s
    )
    costs = PrefillCosts([CostModel(hint) for _ in local])
    lengths = Lengths(len(local), [(number, [row]) for row, number in enumerate(local) if number])
    return PrefillViews(lengths, np.array(queue_s, np.float64), costs)


def request(best_blocks: int = 9, number: int = 0) -> RequestView:
    return RequestView(number=number, prompt_tokens=100, block_tokens=10, block_bytes=1, best_blocks=best_blocks)


LOCAL = views([8, 0, 9], [0.5, 0.0, 2.0])


@pytest.mark.parametrize(("kind", "first"), [(CacheAware, CACHED), (ShortestQueue, IDLE), (RoundRobin, CACHED)])
def test_who_comes_first_where_nothing_is_fetched(kind: type[Policy], first: int) -> None:
    policy = kind(PolicySettings())
    scores = policy.score(request(), LOCAL)
    assert policy.rank(request(), scores).argmin() == first
    assert scores.ttft_s.tolist() == pytest.approx([0.7, 1.0, 2.1])
    assert not scores.fetched_blocks.any()
    assert not scores.transfer_s.any()


def test_to_random_all_are_alike() -> None:
    policy = Random(PolicySettings())
    assert len(set(policy.rank(request(), policy.score(request(), LOCAL)).tolist())) == 1


def test_round_robin_takes_one_after_the_other() -> None:
    policy = RoundRobin(PolicySettings())
    scores = policy.score(request(), LOCAL)
    assert [int(policy.rank(request(number=number), scores).argmin()) for number in range(5)] == [0, 1, 2, 0, 1]


def test_kvcache_centric_fetches_beyond_the_threshold() -> None:
    policy = KVCacheCentric(PolicySettings(balancing_threshold=2.0))
    scores = policy.score(request(best_blocks=8), views([0, 3, 4, 8], [0.0] * 4))
    assert scores.fetched_blocks.tolist() == [8, 5, 0, 0]  # 8 is not more than twice 4
    assert scores.transfer_s.tolist() == pytest.approx([0.16, 0.1, 0.0, 0.0])
    assert scores.prefill_s.tolist() == pytest.approx([0.2, 0.2, 0.6, 0.2])


@pytest.mark.parametrize("kind", [KVCacheCentric, LeastLoaded])
def test_what_is_sooner_computed_than_loaded_is_computed(kind: type[Policy]) -> None:
    """A block takes 0.1 s to compute."""
    policy = kind(PolicySettings())
    for block_s, fetched in ((0.099, [8, 8]), (0.101, [0, 0])):
        scores = policy.score(request(best_blocks=8), views([0, 0], [0.0, 1.0], block_s=block_s))
        assert scores.fetched_blocks.tolist() == fetched
        assert scores.ttft_s.tolist() == pytest.approx([min(0.2 + 8 * block_s, 1.0), min(0.2 + 8 * block_s, 1.0) + 1])


@pytest.mark.parametrize("kind", [KVCacheCentric, LeastLoaded, CacheAware, ShortestQueue])
def test_time_in_the_queue_is_part_of_what_is_expected(kind: type[Policy]) -> None:
    policy = kind(PolicySettings())
    scores = policy.score(request(), views([9, 9], [0.0, 7.0]))
    assert scores.ttft_s[1] - scores.ttft_s[0] == pytest.approx(7.0)
    assert policy.rank(request(), scores).argmin() == 0
