"""How much of the objectives a tenant may use up: one who floods the cluster leaves room for the others.

Where several tenants ask for a model each has a share of it, by weight. Who holds more than its share, of the prefill work that
is to do or of the tokens for which decode instances hold memory, is taken only while a reserve of the objectives is left; who
holds less, as long as they are met. So what becomes free under overload goes to those below their shares, until all have theirs.
A tenant that is alone has everything, and for tenants that ask for little nobody gives up more than the reserve.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from mooncake_core.conductor import events as e
from mooncake_core.config.schema import FairnessConfig

ACTIVE_S: Final = 60.0
"""A tenant has a share while requests of it run, and so long after the last one came."""


class Allowance(Struct, frozen=True, gc=False):
    """What a request may use up at its arrival."""

    ttft_part: float = 1.0
    """Of the objective for the time to first token."""
    tbt_part: float = 1.0
    """Of that for the time between tokens, and of an instance's memory."""
    tenant: str = ""
    share: float = 1.0
    """Of its tenant."""
    prefill: float = 0.0
    """Part of the prefill work that its tenant would have."""
    decode: float = 0.0
    """Part of the tokens for which decode instances hold memory."""

    def explain_ttft(self) -> str:
        """Why it may not use up all of that objective."""
        return self._explain(self.prefill, "prefill work")

    def explain_tbt(self) -> str:
        """Why it may not use up all of that objective, and of memory."""
        return self._explain(self.decode, "tokens to decode")

    def _explain(self, part: float, what: str) -> str:
        return f"tenant {self.tenant} would have {part:.0%} of the {what}, where its share is {self.share:.0%}"


EVERYTHING: Final = Allowance()


class _Held(Struct, gc=False):
    """By a tenant, of a model."""

    prefill_s: float = 0.0
    tokens: int = 0
    num_prefills: int = 0
    num_requests: int = 0
    asked_at: float = 0.0


class TenantShares:
    """What each tenant holds; told of each request that is placed, prefilled and ended."""

    def __init__(self, config: FairnessConfig) -> None:
        self._config = config
        self._models: dict[str, dict[str, _Held]] = {}

    def allow(self, arrival: e.RequestArrived, prefill_s: float, now: float) -> Allowance:
        """What a request may use up that would take so long to prefill."""
        tenants = self._models.get(arrival.model)
        if tenants is None:
            tenants = self._models[arrival.model] = {}
        held = tenants.get(arrival.tenant)
        if held is None:
            held = tenants[arrival.tenant] = _Held()
        held.asked_at = now
        if len(tenants) == 1:
            return EVERYTHING
        for name in [name for name, one in tenants.items() if not one.num_requests and now - one.asked_at > ACTIVE_S]:
            del tenants[name]
        share = self._weight(arrival.tenant) / sum(map(self._weight, tenants))
        others = [one for one in tenants.values() if one is not held]
        prefill = _part(held.prefill_s + prefill_s, sum(one.prefill_s for one in others))
        decode = _part(held.tokens + _tokens(arrival), sum(one.tokens for one in others))
        if prefill <= share and decode <= share:
            return EVERYTHING
        less = 1.0 - self._config.reserve
        ttft_part, tbt_part = (less if part > share else 1.0 for part in (prefill, decode))
        return Allowance(ttft_part, tbt_part, arrival.tenant, share, prefill, decode)

    def placed(self, arrival: e.RequestArrived, prefill_s: float) -> None:
        """A request that has just asked has got its instances."""
        held = self._models[arrival.model][arrival.tenant]
        held.num_requests += 1
        held.num_prefills += 1
        held.prefill_s += prefill_s
        held.tokens += _tokens(arrival)

    def prefilled(self, arrival: e.RequestArrived, prefill_s: float) -> None:
        """A request that was placed has been prefilled, or never will be."""
        held = self._models[arrival.model][arrival.tenant]
        held.num_prefills -= 1
        held.prefill_s = (
            held.prefill_s - prefill_s if held.num_prefills else 0.0
        )  # sums of floats do not end at nothing

    def ended(self, arrival: e.RequestArrived) -> None:
        """A request that was placed has ended, after its prefill."""
        held = self._models[arrival.model][arrival.tenant]
        held.num_requests -= 1
        held.tokens -= _tokens(arrival)

    @property
    def num_requests(self) -> int:
        """That are placed and not ended."""
        return sum(held.num_requests for tenants in self._models.values() for held in tenants.values())

    def _weight(self, tenant: str) -> float:
        return self._config.weights.get(tenant, 1.0)


def _tokens(arrival: e.RequestArrived) -> int:
    return arrival.prompt_tokens + arrival.max_tokens


def _part(own: float, others: float) -> float:
    return own / (own + others) if own else 0.0
