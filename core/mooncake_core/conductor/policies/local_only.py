"""Policies that know no pool: an instance reuses what its local node has, and fetches nothing (FAST'25, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence

from mooncake_core.conductor.policies.contract import Policy, PrefillView, RequestView, Score


class CacheAware(Policy):
    """The smallest predicted time to first token, with local prefixes: FAST'25, section 4.1."""

    def score(self, request: RequestView, instances: Sequence[PrefillView]) -> list[Score]:
        return [
            Score(
                prefill=instance.name,
                local_blocks=instance.local_blocks,
                fetched_blocks=0,
                queue_s=instance.queue_s,
                transfer_s=0.0,
                prefill_s=instance.cost.prefill_s(request.prompt_tokens, instance.local_blocks * request.block_tokens),
            )
            for instance in instances
        ]


class ShortestQueue(CacheAware):
    """Load balancing: who is free first, whatever is cached there."""

    def rank(self, score: Score) -> float:
        return score.queue_s


class Random(CacheAware):
    """Anybody: the Conductor breaks ties by chance."""

    def rank(self, score: Score) -> float:
        return 0.0
