"""Who gets KV memory first, when there is not enough for all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mooncake_core.inference.batching import Batching
from mooncake_core.roles.memory_line import MemoryLine


class Memory:
    """Ten blocks of one token each, and a line before them."""

    def __init__(self) -> None:
        self.batching = Batching(num_blocks=10, block_tokens=1, max_batch=1, chunk_tokens=1)
        self.line = MemoryLine(self.batching.reserve)
        self.taken: list[int] = []
        self.waiting: dict[int, asyncio.Task[None]] = {}

    async def ask(self, number: int, num_blocks: int, priority: int = 0) -> None:
        """Comes to the line, and waits there."""
        self.waiting[number] = asyncio.create_task(self._take(number, num_blocks, priority))
        await asyncio.sleep(0)

    async def free(self, number: int) -> None:
        self.batching.release(number)
        self.line.freed()
        for _ in range(10):
            await asyncio.sleep(0)

    async def _take(self, number: int, num_blocks: int, priority: int) -> None:
        await self.line.reserve(number, num_blocks, priority)
        self.taken.append(number)

    @contextmanager
    def checked(self) -> Iterator[Memory]:
        yield self
        assert self.batching.check() == []


async def test_the_more_urgent_goes_first_and_equals_in_order_of_arrival() -> None:
    with Memory().checked() as memory:
        await memory.ask(0, 10)
        for number, priority in ((1, 5), (2, 0), (3, -1), (4, 0), (5, -1)):
            await memory.ask(number, 10, priority)
        for number in (0, 3, 5, 2, 4):
            await memory.free(number)
        assert memory.taken == [0, 3, 5, 2, 4, 1]


async def test_a_long_prompt_is_not_passed_by_short_ones_of_its_priority() -> None:
    with Memory().checked() as memory:
        await memory.ask(0, 5)
        await memory.ask(1, 5)
        await memory.ask(2, 10)
        await memory.ask(3, 1)
        await memory.free(0)
        assert memory.taken == [0, 1]
        await memory.free(1)
        assert memory.taken == [0, 1, 2]


@pytest.mark.parametrize("gone", [2, 3])
async def test_whoever_leaves_the_line_holds_nobody_up(gone: int) -> None:
    with Memory().checked() as memory:
        await memory.ask(1, 8)
        await memory.ask(2, 5)
        await memory.ask(3, 1)
        memory.waiting[gone].cancel()
        await asyncio.gather(memory.waiting[gone], return_exceptions=True)
        if gone == 3:
            await memory.free(1)
        for _ in range(10):
            await asyncio.sleep(0)
        assert memory.taken == [1, 5 - gone]
        assert not memory.line._line
