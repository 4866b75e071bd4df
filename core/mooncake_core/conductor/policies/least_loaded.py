"""Load balancing that does not know the cache: the baseline of FAST'25, figure 5."""

from __future__ import annotations

from mooncake_core.conductor.cost import Floats
from mooncake_core.conductor.policies.contract import Blocks, Policy, PrefillViews, RequestView, Scores, fetching


class LeastLoaded(Policy):
    """The shortest queue wins. What lies in the pool is used, but does not count in the choice."""

    def score(self, request: RequestView, instances: PrefillViews) -> Scores:
        def wanted(local: Blocks) -> Blocks:
            return request.best_blocks - local

        return fetching(request, instances, wanted)

    def rank(self, request: RequestView, scores: Scores) -> Floats:
        return scores.queue_s
