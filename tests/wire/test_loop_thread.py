"""Coroutines run for threads: results, errors, interruption, the end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mooncake_core.errors import NoSpace, PeerUnreachable
from mooncake_core.wire.loop_thread import LoopThread


async def nothing() -> None:
    pass


def test_results_and_errors_come_back() -> None:
    loop = LoopThread("test")

    async def answer() -> int:
        return 42

    async def refuse() -> int:
        raise NoSpace("full")

    assert loop.run(answer()) == 42
    with pytest.raises(NoSpace, match="full"):
        loop.run(refuse())
    loop.close(nothing)


def test_threads_wait_for_each_other_on_one_loop() -> None:
    loop = LoopThread("test")
    both = threading.Barrier(2)
    met = 0

    async def meet() -> None:
        nonlocal met
        met += 1
        while met < 2:
            await asyncio.sleep(0)

    def work(_: int) -> None:
        both.wait()
        loop.run(meet())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    loop.close(nothing)


def test_the_end_ends_calls_under_way() -> None:
    loop = LoopThread("test")
    waits = threading.Event()

    async def wait_for_ever() -> None:
        waits.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(loop.run, wait_for_ever())
        assert waits.wait(10)
        loop.close(nothing)
        with pytest.raises(PeerUnreachable, match="closed"):
            call.result()


def test_after_the_end_nothing_begins() -> None:
    loop = LoopThread("test")
    loop.close(nothing)
    loop.close(nothing)
    with pytest.raises(PeerUnreachable, match="closed"):
        loop.run(nothing())


def test_an_interrupted_call_returns_only_when_its_work_has_ended() -> None:
    loop = LoopThread("test")
    ended = False

    async def use_memory() -> None:
        nonlocal ended
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            ended = True
            raise

    with pytest.raises(KeyboardInterrupt):
        loop.run(use_memory())
    assert ended
    loop.close(nothing)
