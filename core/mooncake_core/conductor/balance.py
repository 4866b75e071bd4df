"""What the pools have to do, over objectives, as role planning looks at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mooncake_core.conductor.commands import SwitchRole
from mooncake_core.conductor.decode_pool import DecodePool
from mooncake_core.conductor.prefill_pool import PrefillPool
from mooncake_core.conductor.role_planning import PoolLoad, Role, RolePlanner

LOOK_S: Final = 1.0
WEIGHT: Final = 0.1
"""Of a look in the mean that counts: loads go up and down within seconds."""


class Balance:
    """Shows the planner how the pools do, once in LOOK_S."""

    def __init__(self, planner: RolePlanner, ttft_slo_s: float, tbt_slo_s: float) -> None:
        self.planner = planner
        self._ttft_slo_s = ttft_slo_s
        self._tbt_slo_s = tbt_slo_s
        self._looks_at = 0.0
        self._means: dict[Role, float] = {}

    def look(self, prefill: PrefillPool, decode: DecodePool, now: float) -> list[SwitchRole]:
        """The change to begin now, if any."""
        if now < self._looks_at:
            return []
        self._looks_at = now + LOOK_S
        work: dict[Role, PoolLoad] = {"prefill": self._prefill(prefill, now), "decode": self._decode(decode)}
        switch = self.planner.look({role: self._smooth(role, pool) for role, pool in work.items()}, now)
        return [] if switch is None else [SwitchRole(switch.instance, switch.role)]

    def _smooth(self, role: Role, pool: PoolLoad) -> PoolLoad:
        mean = self._means.get(role, pool.load)
        self._means[role] = mean + WEIGHT * (pool.load - mean)
        return PoolLoad(self._means[role], pool.work_s)

    def _prefill(self, pool: PrefillPool, now: float) -> PoolLoad:
        work_s = pool.work_s(now)
        return PoolLoad(_mean(list(work_s.values())) / self._ttft_slo_s, work_s)

    def _decode(self, pool: DecodePool) -> PoolLoad:
        """By the time between tokens or by memory, whichever is nearer to its limit."""
        instances = pool.taking()
        pace = _mean([instance.decoding_s() for instance in instances]) / self._tbt_slo_s
        memory = _mean([instance.used_share() for instance in instances])
        return PoolLoad(max(pace, memory), {instance.name: len(instance.assigned) for instance in instances})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
