"""Reads and writes of random sizes at random places, every byte compared with a copy that is kept beside."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np

from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.wire.messages.memory import SegmentDescriptor

MOST_AT_ONCE = 8


class RandomTransfers:
    """Of one initiator to one segment, whose bytes nobody else writes."""

    def __init__(
        self, engine: TransferEngine, segment: SegmentDescriptor, *, largest_bytes: int, most_bytes: int, seed: int = 0
    ) -> None:
        self._engine = engine
        self._segment = segment
        self._largest_bytes = largest_bytes
        self._left_bytes = most_bytes
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
        while self.done < count and self._left_bytes > 0:
            kind = self._draw.choice([Kind.READ, Kind.WRITE])
            places = list(self._places(min(MOST_AT_ONCE, count - self.done)))
            self._move(kind, places)
            self.done += len(places)
            self.moved_bytes += sum(part.length for part in places)
        self._move(Kind.READ, [Range(0, self._segment.length_bytes)])

    def close(self) -> None:
        self._engine.unregister_memory(self._region)
        self._registered.close()

    def _places(self, count: int) -> Iterator[Range]:
        """That do not overlap: one in each part of the segment."""
        share = self._segment.length_bytes // count
        for number in range(count):
            size = int(math.exp(self._draw.uniform(0, math.log(self._largest_bytes))))
            size = max(1, min(size, share, self._left_bytes))
            self._left_bytes -= size
            yield Range(number * share + self._draw.randint(0, share - size), size)

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
