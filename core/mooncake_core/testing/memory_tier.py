"""A tier without a disk, that fails when told to. What it holds outlives it, as a disk's content outlives a process."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from mooncake_core.errors import ConfigError
from mooncake_core.store.tiers.contract import (
    Listing,
    NewTierObject,
    Tier,
    TierKey,
    TierObject,
    TierSettings,
    TierUsage,
    Written,
)
from mooncake_core.store.tiers.trouble import Trouble
from mooncake_core.store.tiers.verified import copy_verified


class Stored(NamedTuple):
    """An object on a disk."""

    about: TierObject
    data: bytearray


@dataclass
class Disk:
    """What is kept of one node under one path."""

    objects: dict[str, Stored] = field(default_factory=dict)
    """By key, the oldest first."""
    in_use: bool = False
    failing: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryTier(Tier):
    """See the module."""

    name: ClassVar[str] = "memory"
    disks: ClassVar[dict[tuple[str, str], Disk]] = {}
    """(path, owner) → disk."""

    def __init__(self, settings: TierSettings) -> None:
        self.disk = self.disks.setdefault((settings.path, settings.owner), Disk())
        if self.disk.in_use:
            raise ConfigError(f"expected {settings.path} to be used by {settings.owner} alone: give it another path")
        self.disk.in_use = True
        self._capacity_bytes = settings.capacity_bytes
        self._trouble = Trouble(settings.path, retry_s=settings.retry_s, now=settings.now)

    def write(self, objects: Sequence[NewTierObject]) -> Written:
        written = Written([], [])
        with self.disk.lock:
            for item in objects:
                written.stored.append(self._store(item, written.dropped))
        return written

    def read(self, wanted: TierKey, target: memoryview) -> bool:
        with self.disk.lock:
            stored = self.disk.objects.get(wanted.key)
            if stored is None or stored.about.name != wanted or stored.about.size_bytes != target.nbytes:
                return False
            good = copy_verified(memoryview(stored.data), target, stored.about.checksum)
            if not good:
                del self.disk.objects[wanted.key]
            return good

    def holds(self, name: TierKey) -> bool:
        with self.disk.lock:
            stored = self.disk.objects.get(name.key)
            return stored is not None and stored.about.name == name

    def remove(self, names: Sequence[TierKey]) -> None:
        with self.disk.lock:
            for name in names:
                stored = self.disk.objects.get(name.key)
                if stored is not None and stored.about.name == name:
                    del self.disk.objects[name.key]

    def list_objects(self, cursor: str = "", limit: int = 1024) -> Listing:
        with self.disk.lock:
            keys = sorted(key for key in self.disk.objects if key >= cursor)
            objects = [self.disk.objects[key].about for key in keys[:limit]]
        return Listing(objects, keys[limit] if len(keys) > limit else None)

    def usage(self) -> TierUsage:
        with self.disk.lock:
            return TierUsage(
                capacity_bytes=self._capacity_bytes,
                used_bytes=self._used_bytes(),
                num_objects=len(self.disk.objects),
                trouble=self._trouble.message,
            )

    def sync(self) -> None:
        """Memory needs none."""

    def close(self) -> None:
        self.disk.in_use = False

    def _store(self, item: NewTierObject, dropped: list[TierKey]) -> bool:
        about = item.about
        old = self.disk.objects.get(about.key)
        if old is not None and old.about.allocation_id >= about.allocation_id:
            return old.about.name == about.name
        if about.size_bytes > self._capacity_bytes or not self._trouble.may_write():
            return False
        if self.disk.failing:
            self._trouble.failed(OSError(errno.ENOSPC, "No space left on device"))
            return False
        if old is not None:
            dropped.append(self.disk.objects.pop(about.key).about.name)
        while self._used_bytes() + about.size_bytes > self._capacity_bytes:
            dropped.append(self.disk.objects.pop(next(iter(self.disk.objects))).about.name)
        self.disk.objects[about.key] = Stored(about, bytearray(item.data))
        self._trouble.ended()
        return True

    def _used_bytes(self) -> int:
        return sum(stored.about.size_bytes for stored in self.disk.objects.values())
