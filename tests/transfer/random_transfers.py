"""Reads and writes of random sizes at random places, every byte compared with a copy that is kept beside."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np

from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.wire.messages.memory import SegmentDescriptor

MOST_AT_ONCE = 8
COUNT = 2000
LARGEST_BYTES = 16 << 20
MOST_BYTES = 2 * 10**9
SEED = 2
"""On average so many of these sizes are a little more than may be; those of this seed are less."""


def draw_sizes(count: int, largest_bytes: int, most_bytes: int, seed: int) -> list[int]:
    """Of transfers, log-uniform from 1 byte on; fewer where all together would be more bytes than may be."""
    draw = random.Random(seed)
    sizes: list[int] = []
    for _ in range(count):
        size = math.floor(math.exp(draw.uniform(0, math.log(largest_bytes + 1))))
        most_bytes -= size
        if most_bytes < 0:
            break
        sizes.append(size)
    return sizes


class RandomTransfers:
    """Of one initiator to one segment, whose bytes nobody else writes."""

    def __init__(
        self,
        engine: TransferEngine,
        segment: SegmentDescriptor,
        *,
        largest_bytes: int,
        most_bytes: int,
        seed: int = SEED,
    ) -> None:
        self._engine = engine
        self._segment = segment
        self._largest_bytes = largest_bytes
        self._most_bytes = most_bytes
        self._seed = seed
        self._draw = random.Random(seed)
        self._bytes = np.random.default_rng(seed)
        self._expected = bytearray(segment.length_bytes)
        self._registered = SharedMemory("random", segment.length_bytes)
        self._region = engine.register_memory(self._registered.view)
        self.done = 0
        self.moved_bytes = 0

    def run(self, count: int) -> None:
        """Ends early where so many bytes were moved as may be."""
        self._move(Kind.WRITE, [Range(0, self._segment.length_bytes)])
        sizes = draw_sizes(count, self._largest_bytes, self._most_bytes, self._seed)
        while sizes:
            together = self._fitting(sizes)
            self._move(self._draw.choice([Kind.READ, Kind.WRITE]), self._places(together))
            del sizes[: len(together)]
            self.done += len(together)
            self.moved_bytes += sum(together)
        self._compare()

    def close(self) -> None:
        self._engine.unregister_memory(self._region)
        self._registered.close()

    def _compare(self) -> None:
        """All of the segment."""
        self._move(Kind.READ, [Range(0, self._segment.length_bytes)])

    def _fitting(self, sizes: list[int]) -> list[int]:
        """The first of them, as many as find room beside each other."""
        count = min(MOST_AT_ONCE, len(sizes))
        while sum(sizes[:count]) > self._segment.length_bytes:
            count -= 1
        return sizes[:count]

    def _places(self, sizes: list[int]) -> list[Range]:
        """That do not overlap: what is left of the segment is shared out at random before each."""
        left = self._segment.length_bytes - sum(sizes)
        gaps = sorted(self._draw.randint(0, left) for _ in sizes)
        starts = itertools.accumulate(sizes, initial=0)
        return [Range(gap + start, size) for gap, start, size in zip(gaps, starts, sizes, strict=False)]

    def _move(self, kind: Kind, places: list[Range]) -> None:
        here = [self._memory(part) for part in places]
        if kind is Kind.WRITE:
            for part, memory in zip(places, here, strict=True):
                memory[:] = self._bytes.bytes(part.length)
                self._expected[part.offset : part.offset + part.length] = memory
        moved = self._engine.move(
            kind, self._segment, [(self._pieces(memory), [part]) for part, memory in zip(places, here, strict=True)]
        )
        assert [transfer.error for transfer in moved] == [None] * len(places)
        for part, memory in zip(places, here, strict=True):
            assert memory == self._expected[part.offset : part.offset + part.length], part

    def _memory(self, part: Range) -> memoryview:
        """Registered, or not; what is in it differs from what is to come."""
        if self._draw.random() < 0.3:
            return memoryview(bytearray(part.length))
        memory = self._registered.view[part.offset : part.offset + part.length]
        memory[:] = bytes(part.length)
        return memory

    def _pieces(self, memory: memoryview) -> list[memoryview]:
        """In one, or cut in some."""
        most = min(5, memory.nbytes)
        cuts = sorted({self._draw.randrange(memory.nbytes) for _ in range(self._draw.randrange(most))} | {0})
        return [memory[start:end] for start, end in zip(cuts, [*cuts[1:], memory.nbytes], strict=True)]
