"""Policies that know no pool: an instance reuses what its local node has, and fetches nothing (FAST'25, figure 5)."""

from __future__ import annotations

import numpy as np

from mooncake_core.conductor.cost import Floats
from mooncake_core.conductor.policies.contract import Policy, PrefillViews, RequestView, Scores, not_fetching


class CacheAware(Policy):
    """The smallest predicted time to first token, with local prefixes: FAST'25, section 4.1."""

    uses_pool = False

    def score(self, request: RequestView, instances: PrefillViews) -> Scores:
        return not_fetching(request, instances)


class ShortestQueue(CacheAware):
    """Load balancing: who is free first, whatever is cached there."""

    def rank(self, request: RequestView, scores: Scores) -> Floats:
        return scores.queue_s


class Random(CacheAware):
    """Anybody: the Conductor breaks ties by chance."""

    def rank(self, request: RequestView, scores: Scores) -> Floats:
        return np.zeros_like(scores.queue_s)


class RoundRobin(CacheAware):
    """One after the other, in the order in which they joined."""

    def rank(self, request: RequestView, scores: Scores) -> Floats:
        number = len(scores.queue_s)
        found: Floats = ((np.arange(number) - request.number) % number).astype(np.float64)
        return found
