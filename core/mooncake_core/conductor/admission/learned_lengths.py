"""Early rejection by prediction, from the lengths of answers that were seen.

Where `predictive` assumes one decode time for all, here each request is still decoding then with the probability that an
answer as long as its own is now goes on for so many tokens more. What counts is a time between tokens that is not exceeded
with a probability of CERTAINTY: a load that is met on the average is exceeded half of the time.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from mooncake_core.conductor.admission.contract import AdmissionSettings, Asking
from mooncake_core.conductor.admission.objectives import Objectives, tbt_now_s
from mooncake_core.conductor.admission.predictive import begins_at
from mooncake_core.conductor.instances import Assigned, DecodeInstance
from mooncake_core.conductor.output_lengths import OutputLengths

CERTAINTY: Final = 0.9
DEVIATIONS: Final = NormalDist().inv_cdf(CERTAINTY)


class LearnedLengths(Objectives):
    """Who decodes then, by quantiles of the lengths of answers, learned online."""

    def __init__(self, settings: AdmissionSettings) -> None:
        super().__init__(settings)
        self._lengths = OutputLengths()

    def expect_tbt_s(self, request: Asking, decode: DecodeInstance, now: float) -> float | None:
        then = now + request.ttft_s
        step_s = self._pace_s(request, decode, now)
        empty_s = decode.cost.step_s(0, 0)
        mean_s, variance = decode.cost.step_s(1, request.prompt_tokens), 0.0
        for one in decode.assigned.values():
            since = begins_at(one, now)
            if since > then:
                continue
            done, by_then = max(0.0, now - since) / step_s, (then - since) / step_s
            if by_then >= one.max_tokens:
                continue
            share = self._lengths.go_on(one.tenant, int(done), int(by_then))
            part_s = decode.cost.step_s(1, one.prompt_tokens + by_then) - empty_s
            mean_s += share * part_s
            variance += share * (1 - share) * part_s * part_s
        return mean_s + DEVIATIONS * math.sqrt(variance)

    def decoded(self, assigned: Assigned, output_tokens: int, now: float) -> None:
        self._lengths.observe(assigned.tenant, output_tokens)

    def _pace_s(self, request: Asking, decode: DecodeInstance, now: float) -> float:
        """How long steps take until then, about: as now, and no longer than admission lets them."""
        step_s = tbt_now_s(request, decode, now)
        return step_s if self.settings.tbt_slo_s is None else min(step_s, self.settings.tbt_slo_s)
