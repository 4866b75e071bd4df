"""The prefill instances, and which of them takes a request."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from mooncake_core.conductor import events as e
from mooncake_core.conductor.cost import Floats, Ints
from mooncake_core.conductor.instances import PrefillInstance, Work, identity
from mooncake_core.conductor.policies.contract import Policy, PrefillViews, RequestView, Score, Scores
from mooncake_core.conductor.requests import prompt_blocks
from mooncake_core.conductor.shared_prefixes import SharedPrefixes
from mooncake_core.conductor.tables import PrefillTable, named, smallest
from mooncake_core.kvcache.prefix_index import Match, PrefixIndex

LAST_PRIORITY: Final = 2**62
NEARLY: Final = 1.05
"""Instances whose ranks differ by less do equally well: predictions are not that exact."""


class Ranking(Struct, frozen=True, gc=False):
    """What was expected of each instance when a request came, and which one takes it."""

    names: Sequence[str]
    scores: Scores
    ranks: Floats
    """The smallest is the best."""
    free_blocks: Ints
    chosen: int
    """Its row."""
    num_blocks: int
    """That the prompt needs."""
    reason: str
    """Why it is not the one with the smallest rank, if so."""
    match: Match

    @property
    def best(self) -> Score:
        """Of the one that takes it."""
        return self.scores.of(self.chosen, self.names[self.chosen])

    def in_order(self, limit: int) -> list[tuple[Score, int]]:
        """With their free blocks: the chosen one, then the best ones, and last the one with the longest prefix of its own, if it
        is not among them."""
        others = np.argsort(self.ranks, kind="stable").tolist()
        rows = [self.chosen, *(row for row in others if row != self.chosen)][:limit]
        held = self.scores.held_blocks
        longest = int(held.argmax())
        if longest not in rows and held[longest]:
            rows.append(longest)
        return [(self.scores.of(row, self.names[row]), int(self.free_blocks[row])) for row in rows]


class Observed(Struct, frozen=True, gc=False):
    """A prefill that has ended."""

    prompt_tokens: int
    cached_tokens: int
    computed_s: float


class PrefillPool:
    """Instances by name, and the index of what their nodes hold."""

    def __init__(self, policy: Policy, rng: random.Random, *, spread_shared: bool, equal_within: float) -> None:
        self.instances: dict[str, PrefillInstance] = {}
        self.index = PrefixIndex()
        self._policy = policy
        self._random = rng
        self._equal_within = equal_within
        self._shared = SharedPrefixes() if spread_shared else None
        self._tables: dict[tuple[str, bytes], PrefillTable] = {}
        self._num_ranked = 0

    def join(self, instance: PrefillInstance) -> None:
        """It can take requests."""
        self.instances[instance.name] = instance
        self._tables.clear()

    def leave(self, name: str) -> None:
        """It is gone."""
        self.instances.pop(name, None)
        self._tables.clear()

    def drain(self, name: str) -> None:
        """It gets no more requests."""
        if instance := self.instances.get(name):
            instance.draining = True
            self._tables.clear()

    def take_again(self, name: str) -> None:
        """It gets requests as before it was drained."""
        if instance := self.instances.get(name):
            instance.draining = False
            self._tables.clear()

    def take_on(self, table: PrefillTable, row: int, request_id: str, work: Work) -> None:
        """A request was placed there."""
        instance = table.instances[row]
        is_new = request_id not in instance.work
        instance.work[request_id] = work
        if is_new:
            table.take_on(row, work)
        else:
            table.refresh(instance)

    def ended(self, name: str, request_id: str, now: float, observed: Observed | None = None) -> None:
        """A request needs nothing there any more; its prefill may have taken so long."""
        instance = self.instances.get(name)
        if instance is None:
            return
        if observed is not None:
            instance.cost.observe_prefill(observed.prompt_tokens, observed.cached_tokens, observed.computed_s)
        if instance.finish(request_id, now) or observed is not None:
            self._refresh(instance)

    def loaded(self, node: str, num_bytes: int, took_s: float) -> None:
        """A node has loaded something: so it goes for the instances on its host."""
        for instance in self.instances.values():
            if instance.offer.local_node == node:
                instance.cost.observe_load(num_bytes, took_s)
                self._refresh(instance)

    def report(self, name: str, now: float) -> None:
        """An instance has said that it lives, if it is one of these."""
        if instance := self.instances.get(name):
            instance.report(now)
            self._refresh(instance)

    def work_s(self, now: float) -> dict[str, float]:
        """Instances that take requests → predicted time until all they have is done."""
        return {
            name: instance.queue_s(now, LAST_PRIORITY)
            for name, instance in self.instances.items()
            if not instance.draining
        }

    def serving(self, model: str, fingerprint: bytes) -> PrefillTable | None:
        """Those that take requests of such a model; where no fingerprint is given, of the first that is called so."""
        table = self._tables.get((model, fingerprint))
        return self._make_table(model, fingerprint) if table is None else table

    def rank(self, arrival: e.RequestArrived, table: PrefillTable, now: float) -> Ranking | None:
        """None where no instance has memory for the prompt, however idle it were."""
        model = table.model
        match = self.index.match(arrival.block_keys)
        views = PrefillViews(
            lengths=self.index.lengths(match, table.holders),
            queue_s=table.queue_s(now, arrival.priority),
            costs=table.costs,
            lower=self.index.lower(match, table.holders) if match.lower else (),
        )
        request = RequestView(
            number=self._num_ranked,
            prompt_tokens=arrival.prompt_tokens,
            block_tokens=model.block_tokens,
            block_bytes=model.block_bytes,
            best_blocks=match.reach,
        )
        self._num_ranked += 1
        scores = self._policy.score(request, views)
        ranks = self._ranks(arrival, table, request, views, scores)
        needed = prompt_blocks(arrival, model)
        if needed > table.fewest_blocks or arrival.avoid:
            possible = self._possible(arrival, table, needed)
            if not possible.any():
                return None
            ranks = np.where(possible, ranks, np.inf)
        free_blocks = table.free_blocks.copy()
        best = smallest(ranks, self._random, within=self._equal_within)
        chosen = best if free_blocks.item(best) >= needed else self._with_room(ranks, free_blocks >= needed, best)
        reason = "" if chosen == best else _roomier(table.names, free_blocks, chosen, best, needed)
        return Ranking(table.names, scores, ranks, free_blocks, chosen, needed, reason, match)

    def _make_table(self, model: str, fingerprint: bytes) -> PrefillTable | None:
        taking = [instance for instance in self.instances.values() if not instance.draining]
        models = [instance.offer.model for instance in taking]
        wanted = model, fingerprint or next((one.fingerprint for one in models if one.name == model), b"")
        alike = [instance for instance in taking if identity(instance.offer.model) == wanted]
        if not alike:
            return None
        table = self._tables.get(wanted) or PrefillTable(alike, self.index)
        self._tables[wanted] = self._tables[model, fingerprint] = table
        return table

    def _possible(self, arrival: e.RequestArrived, table: PrefillTable, needed: int) -> npt.NDArray[np.bool_]:
        """Those that could hold the prompt, were they idle; without those to be avoided, if others are left."""
        possible: npt.NDArray[np.bool_] = table.num_blocks >= needed
        others = possible & ~named(table.rows, arrival.avoid)
        return others if others.any() else possible

    def _ranks(
        self,
        arrival: e.RequestArrived,
        table: PrefillTable,
        request: RequestView,
        views: PrefillViews,
        scores: Scores,
    ) -> Floats:
        """The policy's, or those it would give if all had the beginning of the prompt that too few have."""
        if self._shared is not None:
            self._shared.observe(arrival.block_keys)
            mask = table.holders.mask
            common = self._shared.too_rare(len(table.names), lambda key: (self.index.holders(key) & mask).bit_count())
            if common:
                scores = self._policy.score(request, views.at_least(common))
        return self._policy.rank(request, scores)

    def _with_room(self, ranks: Floats, roomy: npt.NDArray[np.bool_], best: int) -> int:
        """Of instances that do as well as the best, one takes it whose KV memory holds the prompt beside those that run and
        wait there: elsewhere it waits for memory, which predicted times do not know of."""
        alike = np.where(roomy & (ranks <= ranks[best] * NEARLY), ranks, np.inf)
        chosen = smallest(alike, self._random)
        return best if np.isinf(alike[chosen]) else chosen

    def _refresh(self, instance: PrefillInstance) -> None:
        table = self._tables.get(identity(instance.offer.model))
        if table is not None:
            table.refresh(instance)


def _roomier(names: Sequence[str], free_blocks: Ints, chosen: int, best: int, needed: int) -> str:
    free = free_blocks[chosen]
    return f"{names[chosen]} has {free} blocks of KV memory free, {names[best]} not the {needed} it needs"
