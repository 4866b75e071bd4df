"""SIEVE (Zhang et al., NSDI 2024): one queue and a hand that moves through it. Pure."""

from __future__ import annotations

from collections import OrderedDict

from mooncake_core.store.eviction import Eviction


class Sieve(Eviction):
    """The hand goes from the oldest object to the newest, and begins again. Whatever was not read since it came by goes; the
    others stay in their places, so a scan does not displace them."""

    def __init__(self) -> None:
        self._ahead: OrderedDict[str, bool] = OrderedDict()
        """What the hand comes to, the oldest first → whether it was read."""
        self._behind: OrderedDict[str, bool] = OrderedDict()
        """What it has spared in this round."""

    def added(self, key: str, *, size_bytes: int, position: int) -> None:
        self._ahead[key] = False

    def touched(self, key: str) -> None:
        (self._ahead if key in self._ahead else self._behind)[key] = True  # if it was named: where the hand is

    def removed(self, key: str) -> None:
        self._ahead.pop(key, None)
        self._behind.pop(key, None)

    def name_next(self) -> str | None:
        while self._ahead or self._behind:
            if not self._ahead:
                self._ahead, self._behind = self._behind, self._ahead
            key, read = self._ahead.popitem(last=False)
            if not read:
                return key
            self._behind[key] = False
        return None
