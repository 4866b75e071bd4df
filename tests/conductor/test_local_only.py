"""Policies that know no pool."""

from __future__ import annotations

import pytest

from mooncake_core.conductor.cost import CostModel
from mooncake_core.conductor.policies import CacheAware, Random, ShortestQueue
from mooncake_core.conductor.policies.contract import Policy, PolicySettings, PrefillView, RequestView
from mooncake_core.wire.messages.membership import CostHint

COST = CostModel(CostHint(prefill_base_s=0.0, prefill_per_token_s=0.01, prefill_per_token2_s=0.0))
REQUEST = RequestView(prompt_tokens=100, block_tokens=10, block_bytes=1, best_blocks=9)
INSTANCES = [
    PrefillView(name="cached", local_blocks=8, queue_s=0.5, cost=COST),  # 0.7 s
    PrefillView(name="idle", local_blocks=0, queue_s=0.0, cost=COST),  # 1.0 s
    PrefillView(name="busy", local_blocks=9, queue_s=2.0, cost=COST),  # 2.1 s
]


@pytest.mark.parametrize(("kind", "first"), [(CacheAware, "cached"), (ShortestQueue, "idle")])
def test_who_comes_first(kind: type[Policy], first: str) -> None:
    policy = kind(PolicySettings())
    scores = policy.score(REQUEST, INSTANCES)
    assert min(scores, key=policy.rank).prefill == first
    assert [score.ttft_s for score in scores] == pytest.approx([0.7, 1.0, 2.1])
    assert all(score.fetched_blocks == 0 and score.transfer_s == 0.0 for score in scores)


def test_to_random_all_are_alike() -> None:
    policy = Random(PolicySettings())
    assert len({policy.rank(score) for score in policy.score(REQUEST, INSTANCES)}) == 1
