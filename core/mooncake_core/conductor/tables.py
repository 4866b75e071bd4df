"""Numbers of many instances side by side, so that a request is judged for all of them at once, not for one after the other."""

from __future__ import annotations

import math
import random
from collections.abc import Container, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from mooncake_core.conductor.cost import Floats, Ints, PrefillCosts, StepCosts
from mooncake_core.conductor.instances import DecodeInstance, PrefillInstance, Work
from mooncake_core.kvcache.prefix_index import PrefixIndex

IDLE: Final = -(2**62)
"""The priority of nothing."""
NO_WORK: Final = Work(predicted_s=0.0, started_at=-math.inf)


class PrefillTable:
    """A row for each prefill instance that serves one model."""

    def __init__(self, instances: Sequence[PrefillInstance], index: PrefixIndex) -> None:
        self.instances = list(instances)
        self.names = [instance.name for instance in instances]
        self.rows = {name: row for row, name in enumerate(self.names)}
        self.model = instances[0].offer.model
        self.costs = PrefillCosts([instance.cost for instance in instances])
        self.holders = index.column([instance.offer.local_node for instance in instances])
        """Their local nodes."""
        self.num_blocks: Ints = np.array([instance.offer.num_blocks for instance in instances], np.int64)
        self.fewest_blocks = int(self.num_blocks.min())
        """Of the smallest one."""
        self.free_blocks: Ints = np.zeros(len(instances), np.int64)
        self._done_at: Floats = np.zeros(len(instances))
        """When each has finished what it has, if its oldest work takes as long as predicted."""
        self._behind_s: Floats = np.zeros(len(instances))
        """Of what is behind its oldest work, which may take longer."""
        self._least_urgent: Ints = np.full(len(instances), IDLE, np.int64)
        self._highest_priority = IDLE
        """That any of their work has ever had."""
        for instance in instances:
            self.refresh(instance)

    def take_on(self, row: int, work: Work) -> None:
        """An instance has got more work: the last of all."""
        self.free_blocks[row] -= work.num_blocks
        if len(self.instances[row].work) == 1:
            self._done_at[row] = work.started_at + work.predicted_s
        else:
            self._done_at[row] += work.predicted_s
            self._behind_s[row] += work.predicted_s
        if work.priority > self._least_urgent[row]:
            self._least_urgent[row] = work.priority
            self._highest_priority = max(self._highest_priority, work.priority)

    def refresh(self, instance: PrefillInstance) -> None:
        """Its work has changed, or what is known of its speed; if it has a row."""
        row = self.rows.get(instance.name)
        if row is None:
            return
        total_s, num_blocks, least_urgent = 0.0, 0, IDLE
        for work in instance.work.values():
            total_s += work.predicted_s
            num_blocks += work.num_blocks
            least_urgent = max(least_urgent, work.priority)
        self.free_blocks[row] = instance.offer.num_blocks - num_blocks
        oldest = next(iter(instance.work.values()), NO_WORK)
        self._done_at[row] = oldest.started_at + total_s
        self._behind_s[row] = total_s - oldest.predicted_s
        self._least_urgent[row] = least_urgent
        self._highest_priority = max(self._highest_priority, least_urgent)
        self.costs.refresh(row, instance.cost)

    def queue_s(self, now: float, priority: int) -> Floats:
        """As PrefillInstance.queue_s, of all."""
        queue_s: Floats = np.maximum(self._done_at - now, self._behind_s)
        if self._highest_priority > priority:
            for row in np.flatnonzero(self._least_urgent > priority):  # some of its work gives way
                queue_s[row] = self.instances[row].queue_s(now, priority)
        return queue_s


class DecodeTable:
    """A row for each decode instance that serves one model."""

    def __init__(self, instances: Sequence[DecodeInstance]) -> None:
        self.instances = list(instances)
        self.names = [instance.name for instance in instances]
        self.rows = {name: row for row, name in enumerate(self.names)}
        self.num_blocks: Ints = np.array([instance.offer.num_blocks for instance in instances], np.int64)
        self.free_blocks: Ints = np.zeros(len(instances), np.int64)
        self._costs = StepCosts([instance.cost for instance in instances])
        self._fewest_free = 0
        """Of any of them, or less."""
        for instance in instances:
            self.refresh(instance)

    def refresh(self, instance: DecodeInstance) -> None:
        """Other requests are assigned to it, or something became known of its speed; if it has a row."""
        row = self.rows.get(instance.name)
        if row is None:
            return
        self._costs.refresh(row, instance.cost, len(instance.assigned), instance.prompt_tokens)
        free = self.free_blocks[row] = instance.free_blocks()
        if free < self._fewest_free:
            self._fewest_free = free

    def tbt_with_s(self, context_tokens: int) -> Floats:
        """As DecodeInstance.tbt_with, of all."""
        return self._costs.step_with_s(context_tokens)

    def all_have(self, num_blocks: int) -> bool:
        """Whether there is so much memory free wherever one looks."""
        if self._fewest_free < num_blocks:
            self._fewest_free = int(self.free_blocks.min())
        return self._fewest_free >= num_blocks


def named(rows: dict[str, int], names: Container[str]) -> npt.NDArray[np.bool_]:
    """Which rows have one of these names."""
    return np.array([name in names for name in rows], np.bool_)


def smallest(ranks: Floats, rng: random.Random, *, within: float = 0.0) -> int:
    """The row with the smallest rank; of those that are larger by such a share at most any, as the seed has it."""
    row = int(ranks.argmin())
    (equal,) = (ranks <= ranks.item(row) * (1 + within)).nonzero()
    number = len(equal)
    return row if number < 2 else equal.item(rng.randrange(number))
