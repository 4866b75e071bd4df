"""Admission with headroom: not in the paper, and better than its prediction where either pool has too much to do.

All that is assigned to a decode instance counts, whether it decodes or is still being prefilled, and nothing is taken to have
ended before it has: what is admitted may then run at the objective to its end. Some of the time between tokens may be kept free
for what cannot be foreseen, such as the wait for the first step. Who costs most is turned away first, so that more requests are
served by the same instances: what a prefill takes beyond the mean counts more behind a queue, the longer the queue the more, and
so does what a sequence adds to the steps of a decode instance beyond the mean, the less room is left there. How much more depends
on how many had to be refused lately: in a burst that passes nobody is turned away for what it costs, nor where all cost the same.
"""

from __future__ import annotations

from typing import Final

from mooncake_core.conductor.admission.contract import AdmissionSettings, Asking, Refusal
from mooncake_core.conductor.admission.objectives import SHORTEST_RETRY_S, Objectives
from mooncake_core.conductor.instances import DecodeInstance
from mooncake_core.units import format_duration

MEMORY: Final = 200
"""Means are of about so many requests."""


class Headroom(Objectives):
    """Everything that is assigned counts, and cheap requests go first."""

    def __init__(self, settings: AdmissionSettings) -> None:
        super().__init__(settings)
        self._num_seen = 0
        self._weight = 0.0
        """The configured one, by the share of requests that are refused."""
        self._mean_own_s = 0.0
        self._mean_tokens = 0.0

    def at_arrival(self, request: Asking, decode: DecodeInstance, now: float) -> Refusal | None:
        self._see(request)
        refusal = super().at_arrival(request, decode, now)
        refusal = refusal or self._long_prefill(request) or self._large_context(request, decode)
        overloaded = refusal is not None and refusal.cause != "share"
        self._weight += (self.settings.shed_weight * overloaded - self._weight) / self._num_seen
        return refusal

    def expect_tbt_s(self, request: Asking, decode: DecodeInstance, now: float) -> float | None:
        return decode.tbt_with(request.prompt_tokens) * (1 + self.settings.headroom)

    def _see(self, request: Asking) -> None:
        self._num_seen = min(self._num_seen + 1, MEMORY)
        self._mean_own_s += (request.own_s - self._mean_own_s) / self._num_seen
        self._mean_tokens += (request.prompt_tokens - self._mean_tokens) / self._num_seen

    def _long_prefill(self, request: Asking) -> Refusal | None:
        slo_s = self.settings.ttft_slo_s
        if slo_s is None:
            return None
        queue_s = request.ttft_s - request.own_s
        beyond_s = max(0.0, request.own_s - self._mean_own_s)
        counted_s = request.ttft_s + beyond_s * self._weight * queue_s / slo_s
        if counted_s <= slo_s:
            return None
        what = f"{format_duration(request.own_s)} of prefill behind a queue of {format_duration(queue_s)}"
        return Refusal("ttft", _cheaper_first(what, counted_s, slo_s), max(SHORTEST_RETRY_S, queue_s / 2))

    def _large_context(self, request: Asking, decode: DecodeInstance) -> Refusal | None:
        slo_s, empty_s = self.settings.tbt_slo_s, decode.cost.step_s(0, 0)
        if slo_s is None or slo_s <= empty_s:
            return None
        before_s, with_it_s = decode.tbt_before(), decode.tbt_with(request.prompt_tokens)
        used = (before_s - empty_s) / (slo_s - empty_s)
        beyond_s = max(0.0, with_it_s - decode.tbt_with(int(self._mean_tokens)))
        counted_s = with_it_s + beyond_s * self._weight * used
        counted_s *= 1 + self.settings.headroom
        if counted_s <= slo_s:
            return None
        what = f"{format_duration(with_it_s - before_s)} more between tokens where {format_duration(before_s)} are used"
        return Refusal("tbt", _cheaper_first(what, counted_s, slo_s), SHORTEST_RETRY_S)


def _cheaper_first(what: str, counted_s: float, slo_s: float) -> str:
    counted, slo = format_duration(counted_s), format_duration(slo_s)
    return f"{what} count as {counted}, over the objective of {slo}: cheaper requests go first"
