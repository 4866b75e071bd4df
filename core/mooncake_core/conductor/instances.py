"""What the Conductor knows of each instance: what was dispatched to it, what it reported, what it can take."""

from __future__ import annotations

from dataclasses import dataclass

from mooncake_core.conductor.cost import CostModel
from mooncake_core.wire.messages.membership import InstanceLoad, InstanceOffer


@dataclass(slots=True)
class Work:
    """A request's share of an instance."""

    predicted_s: float
    """Of its prefill."""
    started_at: float
    priority: int = 0
    """Lower is earlier."""
    num_blocks: int = 0
    """KV memory of its prompt."""


class PrefillInstance:
    """A prefill worker, with the requests dispatched to it and not yet finished there."""

    def __init__(self, name: str, offer: InstanceOffer) -> None:
        self.name = name
        self.offer = offer
        self.cost = CostModel(offer.cost)
        self.draining = False
        self.work: dict[str, Work] = {}

    def queue_s(self, now: float, priority: int) -> float:
        """Predicted time until a request of such a priority has its turn: what is less urgent waits for it, also when it
        came before. What runs since a while counts only with the rest."""
        first = [work for work in self.work.values() if work.priority <= priority]
        if not first:
            return 0.0
        total = sum(work.predicted_s for work in first)
        oldest = first[0]
        return max(0.0, total - min(now - oldest.started_at, oldest.predicted_s))

    def free_blocks(self) -> int:
        """KV memory beside all prompts that run or wait here; negative when they wait for memory."""
        return self.offer.num_blocks - sum(work.num_blocks for work in self.work.values())


class DecodeInstance:
    """A decode worker, with the memory and context of the requests assigned to it."""

    def __init__(self, name: str, offer: InstanceOffer) -> None:
        self.name = name
        self.offer = offer
        self.cost = CostModel(offer.cost)
        self.draining = False
        self.blocks_of: dict[str, int] = {}
        self.tokens_of: dict[str, int] = {}

    def assign(self, request_id: str, num_blocks: int, context_tokens: int) -> None:
        """A request will run here."""
        self.blocks_of[request_id] = num_blocks
        self.tokens_of[request_id] = context_tokens

    def release(self, request_id: str) -> None:
        """A request runs here no more."""
        self.blocks_of.pop(request_id, None)
        self.tokens_of.pop(request_id, None)

    def free_blocks(self) -> int:
        """KV memory that is not promised to anybody."""
        return self.offer.num_blocks - sum(self.blocks_of.values())

    def tbt_with(self, context_tokens: int) -> float:
        """Predicted time between tokens if one more sequence of such a length ran here."""
        return self.cost.step_s(len(self.tokens_of) + 1, sum(self.tokens_of.values()) + context_tokens)

    def report(self, load: InstanceLoad) -> None:
        """The instance's own word on how long its steps take."""
        if load.running_requests and load.step_s:
            self.cost.observe_step(load.running_requests, load.context_tokens, load.step_s)
