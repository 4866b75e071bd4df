"""What admissions with objectives have in common: the first token in time, and no decode instance made too slow.

All of them check the time to first token at arrival. When a prefill has ended the decode load may be another than expected
at arrival, so it is looked at again (technical report, section 3): a request refused then was prefilled in vain.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Final, Literal

from mooncake_core.conductor.admission.contract import Admission, AdmissionSettings, Asking, Refusal
from mooncake_core.conductor.instances import DecodeInstance
from mooncake_core.conductor.shares import EVERYTHING, Allowance
from mooncake_core.units import format_duration

SHORTEST_RETRY_S: Final = 0.5


class Objectives(Admission):
    """Subclasses say which time between tokens is to be expected, as seen at arrival."""

    def __init__(self, settings: AdmissionSettings) -> None:
        super().__init__(settings)
        self.checks_decode = settings.tbt_slo_s is not None

    @abstractmethod
    def expect_tbt_s(self, request: Asking, decode: DecodeInstance, now: float) -> float | None:
        """Time between tokens where the request would decode; None: decoding is not looked at yet."""

    def at_arrival(self, request: Asking, decode: DecodeInstance, now: float) -> Refusal | None:
        slo_s, part = self.settings.ttft_slo_s, request.allowance.ttft_part
        if slo_s is not None and request.ttft_s > slo_s * part:
            wait_s = max(request.ttft_s - slo_s * part, SHORTEST_RETRY_S)
            return _refuse("ttft", request.ttft_s, slo_s, wait_s, request.allowance.explain_ttft)
        if self.settings.tbt_slo_s is None:
            return None
        return self._too_slow(self.expect_tbt_s(request, decode, now), request.allowance)

    def at_decode(self, request: Asking, decode: DecodeInstance, now: float) -> Refusal | None:
        return self._too_slow(tbt_now_s(request, decode, now), EVERYTHING)

    def _too_slow(self, tbt_s: float | None, allowance: Allowance) -> Refusal | None:
        slo_s = self.settings.tbt_slo_s
        if slo_s is None or tbt_s is None or tbt_s <= slo_s * allowance.tbt_part:
            return None
        return _refuse("tbt", tbt_s, slo_s, SHORTEST_RETRY_S, allowance.explain_tbt)


def tbt_now_s(request: Asking, decode: DecodeInstance, now: float) -> float:
    """If the request joined at once those that decode now, whatever else is being prefilled for that instance."""
    decoding = [one for one in decode.assigned.values() if one.decoding_since is not None]
    tokens = request.prompt_tokens + sum(one.prompt_tokens for one in decoding)
    step_s = decode.cost.step_s(1 + len(decoding), tokens)
    for one in decoding:
        assert one.decoding_since is not None
        tokens += min(one.max_tokens, int((now - one.decoding_since) / step_s))
    return decode.cost.step_s(1 + len(decoding), tokens)


def _refuse(
    cause: Literal["ttft", "tbt"], expected_s: float, slo_s: float, wait_s: float, explain: Callable[[], str]
) -> Refusal:
    what = {"ttft": "time to first token", "tbt": "time between tokens"}[cause]
    if expected_s > slo_s:
        return Refusal(cause, _exceeds(what, expected_s, slo_s), wait_s)
    left = f"too little of the objective of {format_duration(slo_s)} for others"
    return Refusal("share", f"{explain()}; expected {what} {format_duration(expected_s)} leaves {left}", wait_s)


def _exceeds(what: str, expected_s: float, slo_s: float) -> str:
    shown, limit = format_duration(expected_s), format_duration(slo_s)
    over = f" by {format_duration(expected_s - slo_s)}" if shown == limit else ""
    return f"expected {what} {shown} exceeds the objective of {limit}{over}"
