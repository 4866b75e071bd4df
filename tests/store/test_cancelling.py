"""Who cancels a put or a get has the memory back when the call returns, and the space is given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import pytest

from mooncake_core.store import checksums
from mooncake_core.store.client import PutObject
from mooncake_core.transfer.contract import Kind
from tests.store.held_transport import Gate, held_transport
from tests.store.world import SIZE, World, world

LONG = 1 << 20


async def until(condition: Callable[[], object], timeout_s: float = 3) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def _is_held(gate: Gate, number: int) -> bool:
    return len(gate.held) > number


async def cancel_while_held(task: asyncio.Task[object], gate: Gate) -> None:
    """Cancels what two nodes keep waiting; they go on one after the other."""
    await until(lambda: gate.held)
    task.cancel()
    for number in range(2):
        await until(partial(_is_held, gate, number))
        await asyncio.sleep(0.05)
        assert not task.done(), "it returned while its memory was in use"
        gate.open(gate.held[number])
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("size", [SIZE, LONG])
async def test_a_cancelled_put_returns_when_its_writes_have_ended(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "feed_now", lambda pairs: time.sleep(0.1))
    gate, transport = held_transport()
    async with world("a", "b", transports=[transport], capacity=2 * LONG) as w:
        gate.hold(Kind.WRITE, "a", "b")
        piece = memoryview(bytes(size))
        put = w.store.put([PutObject(key="k", pieces=[piece])], timeout_s=5, replicas=2)
        await cancel_while_held(asyncio.create_task(put), gate)
        await space_is_back(w)


async def test_a_cancelled_get_returns_when_its_reads_have_ended() -> None:
    gate, transport = held_transport()
    async with world("a", "b", transports=[transport]) as w:
        keys = [f"k{number}" for number in range(20)]
        await w.put(*keys)
        gate.hold(Kind.READ, "a", "b")
        await cancel_while_held(asyncio.create_task(w.get(*keys)), gate)


async def test_a_put_cancelled_before_it_was_granted_gives_its_space_back() -> None:
    async with world("a") as w:
        task = asyncio.create_task(w.put("k"))
        while not w.pool.report(0).num_writing:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await space_is_back(w)


async def space_is_back(w: World) -> None:
    """Long before the writer's deadline."""
    await until(lambda: w.pool.report(0).used_bytes == 0, timeout_s=2)
    assert w.pool.report(0).num_writing == 0
    assert w.pool.check() == []
