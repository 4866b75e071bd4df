"""When an instance should change its role: one pool has too much to do for long enough, and the other little.

Loads are over objectives: 1 is where requests begin to miss them. An instance that is to change drains first and then joins
in its new role, one at a time. The best split depends on the load (FAST'25, figure 15), and loads change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["prefill", "decode"]
OTHER: Final[dict[Role, Role]] = {"prefill": "decode", "decode": "prefill"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSettings:
    """When to act. A pool that gives an instance away must stay below `high`, so that nothing is turned back at once."""

    high: float = 0.7
    """A pool with such a load needs help."""
    low: float = 0.4
    """One with no more can give it."""
    patience_s: float = 20.0
    """It must have been so for this long."""
    rest_s: float = 40.0
    """After a change, until its effect is seen."""
    most_s: float = 600.0
    """An instance that has not joined in its new role after so long is not waited for."""
    empty_s: float = 5.0
    """A pool that has lost all its instances is helped after so long, whatever the loads: by then one that died is back."""


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """One role's instances that take requests."""

    load: float
    work_s: Mapping[str, float]
    """Instance → what it has to do; the one with the least is the soonest drained."""


@dataclass(frozen=True, slots=True)
class Switch:
    """An instance is to drain and join in another role."""

    instance: str
    role: Role


class RolePlanner:
    """Looks at loads, as often as it is shown them."""

    def __init__(self, settings: RoleSettings) -> None:
        self._settings = settings
        self._needing: Role | None = None
        self._since = 0.0
        self._switching: Switch | None = None
        self._given_up_at = 0.0
        self._rests_until = 0.0
        self._known: set[Role] = set()
        """Pools that have ever had an instance: while a cluster starts, one that has none yet lacks nothing."""

    def joined(self, instance: str, role: Role, now: float) -> None:
        """An instance is there; perhaps the one that was to change."""
        if self._switching == Switch(instance, role):
            self._switching = None
            self._rests_until = now + self._settings.rest_s
            self._needing = None

    def refused(self, instance: str) -> None:
        """An instance does not change its role."""
        if self._switching is not None and self._switching.instance == instance:
            self._switching = None

    def look(self, pools: Mapping[Role, PoolLoad], now: float) -> Switch | None:
        """The change to begin now, if any."""
        if self._switching is not None and now >= self._given_up_at:
            self._switching = None
        self._known |= {role for role, pool in pools.items() if pool.work_s}
        needing = self._who_needs(pools)
        if needing != self._needing:
            self._needing, self._since = needing, now
        if needing is None or self._switching is not None:
            return None
        is_empty = not pools[needing].work_s
        if now - self._since < (self._settings.empty_s if is_empty else self._settings.patience_s):
            return None
        if now < self._rests_until and not is_empty:
            return None
        work_s = pools[OTHER[needing]].work_s
        self._switching = Switch(min(work_s, key=lambda name: work_s[name]), needing)
        self._given_up_at = now + self._settings.most_s
        return self._switching

    def _who_needs(self, pools: Mapping[Role, PoolLoad]) -> Role | None:
        for role, other in OTHER.items():
            giver = pools[other]
            remaining = len(giver.work_s) - 1
            if role in self._known and not pools[role].work_s and remaining > 0:
                return role
            if (
                pools[role].load >= self._settings.high
                and remaining > 0
                and giver.load <= self._settings.low
                and giver.load * (remaining + 1) / remaining < self._settings.high
            ):
                return role
        return None
