"""What the Conductor knows of each instance: what was dispatched to it, what it reported, what it can take."""

from __future__ import annotations

from msgspec import Struct

from mooncake_core.conductor.cost import CostModel
from mooncake_core.wire.messages.membership import InstanceLoad, InstanceOffer, ModelOffer


class Work(Struct, gc=False):
    """A request's share of an instance."""

    predicted_s: float
    """Of its prefill."""
    started_at: float
    """When it was dispatched or, where another went first, when that had ended."""
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
        self._looked_at: float | None = None

    def report(self, now: float) -> None:
        """It lives. Where it has nothing to do, what was observed of its speed counts less and less: an instance that was slow
        once would get nothing by which to show that it is not."""
        if not self.work and self._looked_at is not None:
            self.cost.fade_prefill(now - self._looked_at)
        if self._looked_at is not None:
            self.cost.fade_load(now - self._looked_at)
        self._looked_at = now

    def finish(self, request_id: str, now: float) -> bool:
        """A request needs nothing here any more, if it did; the one that has waited longest begins."""
        if request_id not in self.work:
            return False
        was_first = next(iter(self.work)) == request_id
        del self.work[request_id]
        if was_first and self.work:
            oldest = next(iter(self.work.values()))
            oldest.started_at = max(oldest.started_at, now)
        return True

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


class Assigned(Struct, gc=False):
    """A request's share of a decode instance."""

    num_blocks: int
    """KV memory for prompt and answer."""
    prompt_tokens: int
    max_tokens: int
    tenant: str
    prefill_ends_at: float
    """As predicted."""
    decoding_since: float | None = None


class DecodeInstance:
    """A decode worker, with the requests assigned to it, also those that are still being prefilled."""

    def __init__(self, name: str, offer: InstanceOffer) -> None:
        self.name = name
        self.offer = offer
        self.cost = CostModel(offer.cost)
        self.draining = False
        self.assigned: dict[str, Assigned] = {}
        self.prompt_tokens = 0
        """Of all of them."""
        self._num_blocks = 0

    def assign(self, request_id: str, assigned: Assigned) -> None:
        """A request will run here."""
        self.assigned[request_id] = assigned
        self._num_blocks += assigned.num_blocks
        self.prompt_tokens += assigned.prompt_tokens

    def release(self, request_id: str) -> Assigned | None:
        """A request runs here no more."""
        assigned = self.assigned.pop(request_id, None)
        if assigned is not None:
            self._num_blocks -= assigned.num_blocks
            self.prompt_tokens -= assigned.prompt_tokens
        return assigned

    def free_blocks(self) -> int:
        """KV memory that is not promised to anybody."""
        return self.offer.num_blocks - self._num_blocks

    def decoding_s(self) -> float:
        """Predicted duration of a step of those that decode now; 0 where none does."""
        decoding = [one.prompt_tokens for one in self.assigned.values() if one.decoding_since is not None]
        return self.cost.step_s(len(decoding), sum(decoding)) if decoding else 0.0

    def used_share(self) -> float:
        """Of its KV memory: what is promised."""
        return self._num_blocks / self.offer.num_blocks if self.offer.num_blocks else 1.0

    def tbt_with(self, context_tokens: int) -> float:
        """Predicted time between tokens if all that is assigned ran here, and one more sequence of such a length."""
        return self.cost.step_s(len(self.assigned) + 1, self.prompt_tokens + context_tokens)

    def tbt_before(self) -> float:
        """The same without that sequence."""
        return self.cost.step_s(len(self.assigned), self.prompt_tokens)

    def report(self, load: InstanceLoad) -> None:
        """The instance's own word on how long its steps take."""
        if load.running_requests and load.step_s:
            self.cost.observe_step(load.running_requests, load.context_tokens, load.step_s)


def identity(offer: ModelOffer) -> tuple[str, bytes]:
    """Instances of equal ones work together."""
    return offer.name, offer.fingerprint
