"""What was removed, so that a node which was away then does not bring it back. Pure."""

from __future__ import annotations

from typing import Final

from mooncake_core.store.tenants import split
from mooncake_core.store.tiers.contract import TierKey

MOST_KEYS: Final = 100_000
MOST_REPLACED: Final = 100_000
"""Keys that were put while a node was away. Of more the oldest are forgotten: to give up all that the node has instead would
empty an SSD that was in repair for an hour."""


class Removals:
    """Allocation ids grow: an object that was removed, or replaced, has a smaller one than was next at that moment."""

    def __init__(self, most_keys: int = MOST_KEYS) -> None:
        """Of more keys than that the oldest are given up together with everything that old: a miss is not a wrong answer."""
        self._most_keys = most_keys
        self._before: dict[str, int] = {}
        self._replaced: dict[str, int] = {}
        self._all_before = 0
        self._all_of_tenant_before: dict[str, int] = {}

    def removed(self, key: str, before: int) -> None:
        """What was put under this key with a smaller id is gone."""
        self._before[key] = max(before, self._before.pop(key, 0))
        if len(self._before) > self._most_keys:
            self.all_removed(self._before.pop(next(iter(self._before))))

    def committed(self, key: str, allocation_id: int, *, is_one_away: bool) -> None:
        """An object was put that was being written when its key was removed: it is there, and what is older is not. Nor is
        what a node that `is_one_away` may have of it, whatever becomes of the new one."""
        if self._before.get(key, 0) > allocation_id:
            self._before[key] = allocation_id
        if is_one_away:
            self._replaced.pop(key, None)
            self._replaced[key] = allocation_id
            if len(self._replaced) > MOST_REPLACED:
                del self._replaced[next(iter(self._replaced))]

    def all_removed(self, before: int) -> None:
        """Whatever was put with a smaller id is gone."""
        self._all_before = max(self._all_before, before)

    def all_of_tenant_removed(self, tenant: str, before: int) -> None:
        """Whatever a tenant put with a smaller id is gone."""
        self._all_of_tenant_before[tenant] = before

    def covers(self, name: TierKey) -> bool:
        """Whether an object was removed."""
        of_tenant = self._all_of_tenant_before.get(split(name.key)[0], 0)
        of_key = max(self._before.get(name.key, 0), self._replaced.get(name.key, 0))
        return name.allocation_id < max(self._all_before, of_tenant, of_key)
