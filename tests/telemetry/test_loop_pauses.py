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
