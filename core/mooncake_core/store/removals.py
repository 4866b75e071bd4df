"""What was removed, so that a node which was away then does not bring it back. Pure."""

from __future__ import annotations

from typing import Final

from mooncake_core.store.tiers.contract import TierKey

MOST_KEYS: Final = 100_000


class Removals:
    """Allocation ids grow: an object that was removed, or replaced, has a smaller one than was next at that moment."""

    def __init__(self, most_keys: int = MOST_KEYS) -> None:
        """Of more keys than that the oldest are given up together with everything that old: a miss is not a wrong answer."""
        self._most_keys = most_keys
        self._before: dict[str, int] = {}
        self._all_before = 0

    def removed(self, key: str, next_id: int) -> None:
        """Whatever was put under this key so far is gone."""
        self._before.pop(key, None)
        self._before[key] = next_id
        if len(self._before) > self._most_keys:
            self.all_removed(self._before.pop(next(iter(self._before))))

    def all_removed(self, next_id: int) -> None:
        """Whatever was put so far is gone."""
        self._all_before = max(self._all_before, next_id)

    def covers(self, name: TierKey) -> bool:
        """Whether an object was removed."""
        return name.allocation_id < max(self._all_before, self._before.get(name.key, 0))
