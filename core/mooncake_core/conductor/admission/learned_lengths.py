"""Early rejection by prediction, from the lengths of answers that were seen.

Where `predictive` assumes one decode time for all, here each request is still decoding then with the probability that an
answer as long as its own is now goes on for so many tokens more; the load is what is expected by that.
"""

from __future__ import annotations

from mooncake_core.conductor.admission.contract import AdmissionSettings, Asking
from mooncake_core.conductor.admission.objectives import Objectives
from mooncake_core.conductor.admission.predictive import begins_at
from mooncake_core.conductor.instances import Assigned, DecodeInstance
from mooncake_core.conductor.output_lengths import OutputLengths


class LearnedLengths(Objectives):
    """Who decodes then, by quantiles of the lengths of answers, learned online."""

    def __init__(self, settings: AdmissionSettings) -> None:
        super().__init__(settings)
        self._lengths = OutputLengths()

    def expect_tbt_s(self, request: Asking, decode: DecodeInstance, now: float) -> float | None:
        then = now + request.ttft_s
        step_s = decode.tbt_with(request.prompt_tokens)
        num_sequences, tokens = 1.0, float(request.prompt_tokens)
        for one in decode.assigned.values():
            since = begins_at(one, now)
            if since > then:
                continue
            done, by_then = max(0.0, now - since) / step_s, (then - since) / step_s
            if by_then >= one.max_tokens:
                continue
            share = self._lengths.go_on(one.tenant, int(done), int(by_then))
            num_sequences += share
            tokens += share * (one.prompt_tokens + by_then)
        return decode.cost.step_s(num_sequences, tokens)

    def decoded(self, assigned: Assigned, output_tokens: int, now: float) -> None:
        self._lengths.observe(assigned.tenant, output_tokens)
