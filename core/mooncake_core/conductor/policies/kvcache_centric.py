"""KVCache-centric scheduling: Algorithm 1 of the paper (FAST'25, section 4.1)."""

from __future__ import annotations

from mooncake_core.conductor.policies.contract import Blocks, Policy, PrefillViews, RequestView, Scores, fetching


class KVCacheCentric(Policy):
    """Each instance uses its local prefix, or fetches the best one where that is longer by more than the threshold, if that is
    sooner done than computing it.

    The smallest predicted time to first token wins. The Conductor has what was fetched copied to the winner's node, so hot
    blocks spread (section 4.2).
    """

    def score(self, request: RequestView, instances: PrefillViews) -> Scores:
        best, threshold = request.best_blocks, self.settings.balancing_threshold

        def wanted(local: Blocks) -> Blocks:
            return (best - local) * (local * threshold < best)

        return fetching(request, instances, wanted)
