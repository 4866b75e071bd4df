"""The tier of the tests keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from mooncake_core.testing.memory_tier import MemoryTier
from mooncake_core.testing.tier_contract import OWNER, TierContract


class TestMemory(TierContract):
    tier = MemoryTier

    def damage(self, place: str, key: str) -> None:
        MemoryTier.disks[place, OWNER].objects[key].data[100] ^= 1

    def failing(self, place: str) -> AbstractContextManager[None]:
        return failing(place)


@contextmanager
def failing(place: str) -> Iterator[None]:
    disk = MemoryTier.disks[place, OWNER]
    disk.failing = True
    yield
    disk.failing = False
