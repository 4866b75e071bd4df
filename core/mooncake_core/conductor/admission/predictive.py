"""Early rejection by prediction (technical report, section 7.4): the decode load at the moment when the prefill will end.

The system-level prediction of the report: each request decodes for the same time. Requests whose prefill ends by then are
added, those whose time is over are taken away. Unlike there, the instance counts where the request would go, and not the mean
of all: it is the one with the smallest load.
"""

from __future__ import annotations

import math
from typing import Final

from mooncake_core.conductor.admission.contract import AdmissionSettings, Asking
from mooncake_core.conductor.admission.objectives import Objectives
from mooncake_core.conductor.instances import Assigned, DecodeInstance

MEMORY: Final = 200
"""The mean decode time is of about so many requests."""


class Predictive(Objectives):
    """Who decodes then, if each does for the same time."""

    def __init__(self, settings: AdmissionSettings) -> None:
        super().__init__(settings)
        self._num_decoded = 0
        self._mean_s = math.inf if settings.decode_time_s is None else settings.decode_time_s

    def expect_tbt_s(self, request: Asking, decode: DecodeInstance, now: float) -> float | None:
        then, mean_s = now + request.ttft_s, self._mean_s
        num_sequences, tokens = 1, request.prompt_tokens
        for one in decode.assigned.values():
            since = one.decoding_since
            if since is None:
                since = one.prefill_ends_at if one.prefill_ends_at > now else now  # as begins_at, in half of the time
            if since <= then < since + mean_s:
                num_sequences += 1
                tokens += one.prompt_tokens
        return decode.cost.step_s(num_sequences, tokens)

    def decoded(self, assigned: Assigned, output_tokens: int, now: float) -> None:
        if self.settings.decode_time_s is not None or assigned.decoding_since is None:
            return
        took_s = now - assigned.decoding_since
        self._num_decoded += 1
        if self._num_decoded == 1:
            self._mean_s = took_s
        self._mean_s += (took_s - self._mean_s) / min(self._num_decoded, MEMORY)


def begins_at(assigned: Assigned, now: float) -> float:
    """When its decoding has begun or is expected to; a prefill that takes longer than predicted may end any moment."""
    if assigned.decoding_since is not None:
        return assigned.decoding_since
    return max(assigned.prefill_ends_at, now)
