"""The prefill instances, and which of them takes a request."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from mooncake_core.conductor import events as e
from mooncake_core.conductor.instances import PrefillInstance, identity
from mooncake_core.conductor.policies.contract import Policy, PrefillView, RequestView, Score
from mooncake_core.conductor.requests import prompt_blocks
from mooncake_core.kvcache.prefix_index import PrefixIndex

NEARLY: Final = 1.05
"""Instances whose ranks differ by less do equally well: predictions are not that exact."""


class Ranking(NamedTuple):
    """Candidates of one model, the best first."""

    scores: list[Score]
    reason: str
    """Why the first one is not the one with the smallest rank, if so."""


class PrefillPool:
    """Instances by name, and the index of what their nodes hold."""

    def __init__(self, policy: Policy, rng: random.Random) -> None:
        self.instances: dict[str, PrefillInstance] = {}
        self.index = PrefixIndex()
        self._policy = policy
        self._random = rng

    def serving(self, arrival: e.RequestArrived) -> list[PrefillInstance]:
        """Those that take requests of its model."""
        return [
            instance
            for instance in self.instances.values()
            if instance.offer.model.name == arrival.model
            and arrival.fingerprint in (b"", instance.offer.model.fingerprint)
            and not instance.draining
        ]

    def rank(self, arrival: e.RequestArrived, instances: Sequence[PrefillInstance], now: float) -> Ranking:
        """Of these, those that serve the same model as the best one."""
        scores = self._scores(arrival, instances, now)
        model = identity(self.instances[scores[0].prefill].offer.model)
        scores = [score for score in scores if identity(self.instances[score.prefill].offer.model) == model]
        return self._with_room_first(arrival, scores)

    def _scores(self, arrival: e.RequestArrived, instances: Sequence[PrefillInstance], now: float) -> list[Score]:
        """All candidates, the best first; equal ones in seeded random order."""
        model = instances[0].offer.model
        matches = self.index.match(arrival.block_keys)
        views = [
            PrefillView(
                name=instance.name,
                local_blocks=matches.get(instance.offer.local_node, 0),
                queue_s=instance.queue_s(now, arrival.priority),
                cost=instance.cost,
            )
            for instance in instances
        ]
        request = RequestView(
            prompt_tokens=arrival.prompt_tokens,
            block_tokens=model.block_tokens,
            block_bytes=model.block_bytes,
            best_blocks=self.index.reach(arrival.block_keys),
        )
        scores = self._policy.score(request, views)
        self._random.shuffle(scores)
        return sorted(scores, key=lambda score: (score.prefill in arrival.avoid, self._policy.rank(score)))

    def _with_room_first(self, arrival: e.RequestArrived, scores: list[Score]) -> Ranking:
        """Of instances that do as well as the best, one takes it whose KV memory holds the prompt beside those that run and
        wait there: elsewhere it waits for memory, which predicted times do not know of."""
        best = scores[0]
        needed = prompt_blocks(arrival, self.instances[best.prefill].offer.model)
        if self.instances[best.prefill].free_blocks() >= needed:
            return Ranking(scores, "")
        limit = self._policy.rank(best) * NEARLY
        for score in scores[1:]:
            alike = (score.prefill in arrival.avoid) == (best.prefill in arrival.avoid)
            free = self.instances[score.prefill].free_blocks()
            if alike and self._policy.rank(score) <= limit and free >= needed:
                reason = (
                    f"{score.prefill} has {free} blocks of KV memory free, {best.prefill} not the {needed} it needs"
                )
                return Ranking([score, *(other for other in scores if other is not score)], reason)
        return Ranking(scores, "")
