"""All are taken."""

from __future__ import annotations

from mooncake_core.conductor.admission.contract import Admission, Asking, Refusal
from mooncake_core.conductor.instances import DecodeInstance


class AdmitAll(Admission):
    """Objectives or not; where there is no memory, a request is still refused."""

    def at_arrival(self, request: Asking, decode: DecodeInstance, now: float) -> Refusal | None:
        return None
