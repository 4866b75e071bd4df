"""The pauses of an event loop: what runs on it counts, what it waits for does not."""

from __future__ import annotations

import asyncio
import time

import pytest

from mooncake_core.telemetry.loop_pauses import LoopPauses


def test_work_on_the_loop_is_a_pause_and_waiting_is_none() -> None:
    pauses = LoopPauses()

    async def wait_and_work() -> None:
        await asyncio.sleep(0.5)
        assert pauses.longest_s < 0.5
        until = time.monotonic() + 0.15
        while time.monotonic() < until:
            pass
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=pauses.new_loop) as runner:
        runner.run(wait_and_work())
    assert pauses.longest_s >= 0.15
    assert pauses.recent_s == pauses.longest_s


def test_the_recent_ones_are_forgotten_after_two_windows() -> None:
    pauses = LoopPauses(window_s=10)
    pauses.note(1000, 1003)
    assert (pauses.longest_s, pauses.recent_s) == (3, 3)
    pauses.note(1014, 1015)
    assert pauses.recent_s == 3
    pauses.note(1026, 1026.5)
    assert (pauses.longest_s, pauses.recent_s) == (3, 1)
    pauses.note(1090, 1090.25)
    assert pauses.recent_s == pytest.approx(0.25)


def test_what_was_before_the_beginning_does_not_count() -> None:
    pauses = LoopPauses()

    async def start_and_work() -> None:
        time.sleep(0.5)
        pauses.begin()
        await asyncio.sleep(0)
        assert pauses.longest_s < 0.5
        time.sleep(0.1)
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=pauses.new_loop) as runner:
        runner.run(start_and_work())
    assert pauses.longest_s >= 0.1


def test_who_looks_before_sleeping_hears_what_happens_and_keeps_its_timers() -> None:
    pauses = LoopPauses()

    async def hear(seconds: float) -> float:
        """Something each of so many seconds, from another thread; how long a sleep beside it takes."""
        loop = asyncio.get_running_loop()
        heard = asyncio.Queue[int]()
        begun = time.monotonic()
        sleeping = asyncio.create_task(asyncio.sleep(0.2))

        def tell() -> None:
            for number in range(20):
                time.sleep(seconds)
                loop.call_soon_threadsafe(heard.put_nowait, number)

        telling = loop.run_in_executor(None, tell)
        assert [await heard.get() for _ in range(20)] == list(range(20))
        await telling
        await sleeping
        return time.monotonic() - begun

    with asyncio.Runner(loop_factory=lambda: pauses.new_loop(0.002)) as runner:
        assert runner.run(hear(0.0005)) >= 0.2  # found while it looks
        assert runner.run(hear(0.005)) >= 0.2  # woken


def test_who_looks_sleeps_when_there_is_nothing() -> None:
    async def wait() -> float:
        begun = time.thread_time()
        await asyncio.sleep(0.3)
        return time.thread_time() - begun

    with asyncio.Runner(loop_factory=lambda: LoopPauses().new_loop(0.002)) as runner:
        assert runner.run(wait()) < 0.1
