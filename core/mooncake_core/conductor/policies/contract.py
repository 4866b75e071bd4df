"""What a scheduling policy is: it judges, for one request, what each prefill instance would take to the first token.

It does so for all instances at once: a column has one entry for each of them, and arithmetic goes over whole columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mooncake_core.conductor.cost import Floats, Ints, PrefillCosts


class PrefillViews(NamedTuple):
    """The prefill instances as a policy sees them."""

    local_blocks: Ints
    """Leading blocks of this prompt that an instance's local node has."""
    queue_s: Floats
    """Predicted time until it has finished what was dispatched to it before and goes first."""
    costs: PrefillCosts


class RequestView(NamedTuple):
    """A request as a policy sees it."""

    number: int
    """So many came before it."""
    prompt_tokens: int
    block_tokens: int
    block_bytes: int
    best_blocks: int
    """Leading blocks that the pool as a whole can supply."""


class Score(NamedTuple):
    """How an instance would do."""

    prefill: str
    local_blocks: int
    fetched_blocks: int
    """Blocks beyond the local ones that it would fetch rather than recompute."""
    queue_s: float
    transfer_s: float
    prefill_s: float

    @property
    def ttft_s(self) -> float:
        """Predicted time to first token."""
        return self.queue_s + self.transfer_s + self.prefill_s


class Scores(NamedTuple):
    """How all of them would do: columns of what a Score has."""

    local_blocks: Ints
    fetched_blocks: Ints
    queue_s: Floats
    transfer_s: Floats
    prefill_s: Floats

    @property
    def ttft_s(self) -> Floats:
        """Predicted times to first token."""
        return self.queue_s + self.transfer_s + self.prefill_s

    def of(self, row: int, prefill: str) -> Score:
        """One instance's."""
        return Score(
            prefill,
            self.local_blocks.item(row),
            self.fetched_blocks.item(row),
            self.queue_s.item(row),
            self.transfer_s.item(row),
            self.prefill_s.item(row),
        )


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The scheduler's part of the configuration, as far as policies use it."""

    balancing_threshold: float = 2.0


class Policy(ABC):
    """Stateless: what it should remember is the Conductor's business."""

    uses_pool = True
    """Instances take blocks from other nodes; what an instance lacks may be copied to its node."""

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings

    @abstractmethod
    def score(self, request: RequestView, instances: PrefillViews) -> Scores:
        """What is expected of each instance."""

    def rank(self, request: RequestView, scores: Scores) -> Floats:
        """The instance with the smallest one is taken, of equal ones any. By default the predicted time to first token."""
        return scores.ttft_s


def fetching(request: RequestView, instances: PrefillViews, wanted: Ints) -> Scores:
    """Scores where each instance fetches so many blocks, unless it is sooner done without: recomputing them is then cheaper."""
    matched = (instances.local_blocks + wanted) * request.block_tokens
    transfer_s = instances.costs.fetch_s(wanted * request.block_bytes)
    prefill_s = instances.costs.prefill_s(request.prompt_tokens, matched)
    if instances.costs.may_be_dearer(request.block_bytes / request.block_tokens):
        alone_s = instances.costs.prefill_s(request.prompt_tokens, instances.local_blocks * request.block_tokens)
        dearer = transfer_s + prefill_s > alone_s
        if dearer.any():
            wanted = np.where(dearer, 0, wanted)
            transfer_s = np.where(dearer, 0.0, transfer_s)
            prefill_s = np.where(dearer, alone_s, prefill_s)
    return Scores(instances.local_blocks, wanted, instances.queue_s, transfer_s, prefill_s)


def not_fetching(request: RequestView, instances: PrefillViews) -> Scores:
    """Scores where each instance uses what its local node has, and no more."""
    local = instances.local_blocks
    prefill_s = instances.costs.prefill_s(request.prompt_tokens, local * request.block_tokens)
    return Scores(local, np.zeros_like(local), instances.queue_s, np.zeros_like(prefill_s), prefill_s)
