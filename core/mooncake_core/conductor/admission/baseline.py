"""The technical report's baseline (section 7): decoding is looked at when the prefill has ended, which may then be in vain."""

from __future__ import annotations

from mooncake_core.conductor.admission.contract import Asking
from mooncake_core.conductor.admission.objectives import Objectives
from mooncake_core.conductor.instances import DecodeInstance


class Baseline(Objectives):
    """At arrival only the time to first token counts."""

    def expect_tbt_s(self, request: Asking, decode: DecodeInstance, now: float) -> float | None:
        return None
