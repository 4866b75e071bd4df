"""KVCache-centric scheduling: Algorithm 1 of the paper (FAST'25, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from mooncake_core.conductor.policies.contract import Policy, PrefillView, RequestView, Score


class KVCacheCentric(Policy):
    """Each instance uses its local prefix, or fetches the best one where that is longer by more than the threshold.

    The smallest predicted time to first token wins. Of section 4.2, copying what was fetched to the winner's node for
    good, so that hot blocks spread, needs copies in the pool and is not done here yet.
    """

    def score(self, request: RequestView, instances: Sequence[PrefillView]) -> list[Score]:
        return [self._score(request, instance) for instance in instances]

    def _score(self, request: RequestView, instance: PrefillView) -> Score:
        local, best = instance.local_blocks, request.best_blocks
        worth_fetching = best > local and best > local * self.settings.balancing_threshold
        fetched = best - local if worth_fetching else 0
        matched_tokens = (local + fetched) * request.block_tokens
        return Score(
            prefill=instance.name,
            local_blocks=local,
            fetched_blocks=fetched,
            queue_s=instance.queue_s,
            transfer_s=instance.cost.fetch_s(fetched * request.block_bytes),
            prefill_s=instance.cost.prefill_s(request.prompt_tokens, matched_tokens),
        )
