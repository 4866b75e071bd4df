"""Early rejection (technical report, section 7.2): the decode load at arrival counts, so no prefill is begun in vain.

Not known to it: what is being prefilled and will decode as well by then. So it takes too many, and later too few.
"""

from __future__ import annotations

from mooncake_core.conductor.admission.contract import Asking
from mooncake_core.conductor.admission.objectives import Objectives, tbt_now_s
from mooncake_core.conductor.instances import DecodeInstance


class Early(Objectives):
    """At arrival what decodes now counts."""

    def expect_tbt_s(self, request: Asking, decode: DecodeInstance, now: float) -> float | None:
        return tbt_now_s(request, decode, now)
