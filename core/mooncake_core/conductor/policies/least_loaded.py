"""Load balancing that does not know the cache: the baseline of FAST'25, figure 5."""

from __future__ import annotations

from collections.abc import Sequence

from mooncake_core.conductor.policies.contract import Policy, PrefillView, RequestView, Score


class LeastLoaded(Policy):
    """The shortest queue wins. What lies in the pool is used, but does not count in the choice."""

    def score(self, request: RequestView, instances: Sequence[PrefillView]) -> list[Score]:
        return [
            Score(
                prefill=instance.name,
                local_blocks=instance.local_blocks,
                fetched_blocks=request.best_blocks - instance.local_blocks,
                queue_s=instance.queue_s,
                transfer_s=instance.cost.fetch_s((request.best_blocks - instance.local_blocks) * request.block_bytes),
                prefill_s=instance.cost.prefill_s(request.prompt_tokens, request.best_blocks * request.block_tokens),
            )
            for instance in instances
        ]

    def rank(self, score: Score) -> float:
        return score.queue_s
