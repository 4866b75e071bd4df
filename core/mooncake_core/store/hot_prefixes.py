"""Which prefixes are read most, in bounded memory: space-saving counters (Metwally et al., 2005), one per chain head. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mooncake_core.store.objects import PoolObject
from mooncake_core.store.tenants import split
from mooncake_core.wire.messages.usage import HotPrefix

CAPACITY: Final = 256
HALF_LIFE_READS: Final = 1 << 16
"""After so many reads all counts are halved: what was hot once does not stay so for ever."""
LONGEST_WALK: Final = 1024
"""Steps from a block towards the head of its chain: they are bounded, as is all that one question may cost."""


@dataclass(slots=True)
class _Counter:
    reads: int
    overcount: int
    """`reads` that may be of others: what its predecessor in this place had."""
    num_objects: int = 0
    size_bytes: int = 0


class HotPrefixes:
    """Counts reads by the head of the chain that was read. A prefix that is read often enough is never left out."""

    def __init__(self, capacity: int = CAPACITY, half_life_reads: int = HALF_LIFE_READS) -> None:
        self._capacity = capacity
        self._half_life_reads = half_life_reads
        self._until_halving = half_life_reads
        self._counters: dict[str, _Counter] = {}
        self._heap: list[tuple[int, str]] = []
        """One entry per counter, with no more reads than it has: the first whose reads are right is the smallest."""

    def read(self, head: str, *, num_objects: int, size_bytes: int) -> None:
        """One read of a prefix, named as in the pool's index: of so many objects, with so many bytes in all."""
        counter = self._counters.get(head) or self._place(head)
        counter.reads += 1
        counter.num_objects += num_objects
        counter.size_bytes += size_bytes
        self._until_halving -= 1
        if not self._until_halving:
            self._halve()

    def hottest(self, limit: int) -> list[HotPrefix]:
        """Most reads first."""
        ranked = heapq.nlargest(limit, self._counters.items(), key=lambda item: item[1].reads)
        return [
            HotPrefix(
                tenant=split(head)[0],
                head=split(head)[1],
                reads=counter.reads,
                overcount=counter.overcount,
                num_objects=counter.num_objects,
                size_bytes=counter.size_bytes,
            )
            for head, counter in ranked
        ]

    def _place(self, head: str) -> _Counter:
        """A counter for a new head; where all are taken, that of the least read one, whose count it takes over."""
        if len(self._counters) < self._capacity:
            counter = _Counter(reads=0, overcount=0)
            heapq.heappush(self._heap, (0, head))
        else:
            least, reads = self._least()
            del self._counters[least]
            counter = _Counter(reads=reads, overcount=reads)
            heapq.heapreplace(self._heap, (reads, head))
        self._counters[head] = counter
        return counter

    def _least(self) -> tuple[str, int]:
        """The least read head, first in the heap, and its reads."""
        while True:
            noted, head = self._heap[0]
            reads = self._counters[head].reads
            if noted == reads:
                return head, reads
            heapq.heapreplace(self._heap, (reads, head))

    def _halve(self) -> None:
        self._until_halving = self._half_life_reads
        for counter in self._counters.values():
            counter.reads //= 2
            counter.overcount //= 2
            counter.num_objects //= 2
            counter.size_bytes //= 2
        self._heap = [(counter.reads, head) for head, counter in self._counters.items()]
        heapq.heapify(self._heap)


def head_of(entry: PoolObject, get: Callable[[str], PoolObject | None]) -> str:
    """The first object of a chain that is there; of a very long one, an object far before this one."""
    for _ in range(LONGEST_WALK):
        parent = get(entry.parent)
        if parent is None:
            break
        entry = parent
    return entry.key
