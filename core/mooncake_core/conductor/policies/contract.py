"""What a scheduling policy is: it judges, for one request, what each prefill instance would take to the first token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from mooncake_core.conductor.cost import CostModel


@dataclass(frozen=True, slots=True)
class PrefillView:
    """A prefill instance as a policy sees it."""

    name: str
    local_blocks: int
    """Leading blocks of this prompt that the instance's local node has."""
    queue_s: float
    """Predicted time until it has finished what was dispatched to it before and goes first."""
    cost: CostModel


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request as a policy sees it."""

    prompt_tokens: int
    block_tokens: int
    block_bytes: int
    best_blocks: int
    """Leading blocks that the pool as a whole can supply."""


@dataclass(frozen=True, slots=True)
class Score:
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


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The scheduler's part of the configuration, as far as policies use it."""

    balancing_threshold: float = 2.0


class Policy(ABC):
    """Stateless: what it should remember is the Conductor's business."""

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings

    @abstractmethod
    def score(self, request: RequestView, instances: Sequence[PrefillView]) -> list[Score]:
        """One score per instance, in any order. The Conductor takes the smallest `rank`."""

    def rank(self, score: Score) -> float:
        """Smaller is better. By default the predicted time to first token."""
        return score.ttft_s
