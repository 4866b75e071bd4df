"""Where objects lie, remembered for as long as the lease on them lasts: a get then asks the master nothing. Pure.

Read under such a lease an object may have been removed by force, or replaced: whoever uses what stands here also reads the
object's slot, which says so. See docs/decisions/0029.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import Got, Located

MOST_OBJECTS: Final = 1 << 16
LEAST_LEFT: Final = 0.25
"""Of a lease: one that ends sooner is taken anew, and so those who read often keep theirs."""


class _Lease(Struct, frozen=True, gc=False):
    """Nothing in it leads back to it: the garbage collector of the process that reads has none of them to look at."""

    found: Located
    segments: dict[str, SegmentDescriptor]
    usable_until: float
    ends: float


class Leases:
    """Of one client. Used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[str, _Lease] = {}
        """The oldest first."""

    def note(self, keys: Sequence[str], got: Got, lease_ends: float) -> None:
        """What the master has answered."""
        usable_until = lease_ends - LEAST_LEFT * got.lease_s
        with self._lock:
            for key, found in zip(keys, got.objects, strict=True):
                self._by_key.pop(key, None)
                if found is not None:
                    self._by_key[key] = _Lease(found, got.segments, usable_until, lease_ends)
            while len(self._by_key) > MOST_OBJECTS:
                del self._by_key[next(iter(self._by_key))]

    def look(self, keys: Sequence[str], now: float) -> tuple[Got, float] | None:
        """As the master would answer, and when the first of the leases ends; None where one of them is not known."""
        known = [self._by_key.get(key) for key in keys]
        leases = [lease for lease in known if lease is not None and lease.usable_until > now]
        if len(leases) < len(keys) or not leases:
            return None
        segments = leases[0].segments
        if any(lease.segments is not segments for lease in leases):
            segments = {name: segment for lease in leases for name, segment in lease.segments.items()}
        objects: list[Located | None] = [lease.found for lease in leases]
        return Got(term=0, lease_s=0.0, objects=objects, segments=segments), min(lease.ends for lease in leases)
