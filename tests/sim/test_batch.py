"""Continuous batching in closed form, against steps counted one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.sim.batch import Batch
from mooncake_core.sim.gaps import Run, summarise


def step_s(batch: int, context_tokens: int) -> float:
    return 1.0 + 0.1 * batch + 0.01 * context_tokens


def gaps(runs: list[Run]) -> list[float]:
    return [run.first_s + run.growth_s * index for run in runs for index in range(run.length)]


def test_a_lone_sequence_takes_longer_with_each_token() -> None:
    batch: Batch[str] = Batch(step_s)
    batch.join("a", 100, 3, 0.0, 0.0)
    assert batch.next_finish() == pytest.approx(2.10 + 2.11 + 2.12)
    end = batch.next_finish()
    assert batch.finished(end) == ["a"]
    assert gaps(batch.leave("a", end)) == pytest.approx([2.10, 2.11, 2.12])


def test_who_joins_in_the_middle_waits_for_the_border_and_slows_the_others() -> None:
    batch: Batch[str] = Batch(step_s)
    batch.join("a", 100, 3, 0.0, 0.0)
    border = batch.next_border(1.0)
    assert border == pytest.approx(2.10)
    batch.join("b", 50, 1, 1.0, border)
    assert batch.next_finish() == pytest.approx(2.10 + 2.71)  # 1 + 0.2 + 0.01 * (101 + 50)
    end = batch.next_finish()
    assert batch.finished(end) == ["b"]
    assert gaps(batch.leave("b", end)) == pytest.approx([1.10 + 2.71])  # its token before came at 1.0
    assert batch.next_finish() == pytest.approx(2.10 + 2.71 + 2.12)
    end = batch.next_finish()
    assert gaps(batch.leave("a", end)) == pytest.approx([2.10, 2.71, 2.12])


def test_a_stall_lengthens_one_gap_of_those_that_run() -> None:
    batch: Batch[str] = Batch(step_s)
    batch.join("a", 100, 4, 0.0, 0.0)
    border = batch.next_border(0.5)
    batch.stall(5.0, border)
    batch.join("b", 0, 1, border + 5.0, border + 5.0)  # what was done meanwhile was its prompt
    end = batch.next_finish()
    assert end == pytest.approx(2.10 + 5.0 + 2.21)
    assert gaps(batch.leave("b", end)) == pytest.approx([2.21])
    end = batch.next_finish()
    assert gaps(batch.leave("a", end)) == pytest.approx([2.10, 7.21, 2.12, 2.13])


def test_the_slowest_tenth_of_gaps_is_what_counts() -> None:
    runs = [Run(18, 1.0, 0.0), Run(2, 5.0, 1.0)]
    found = summarise(runs)
    assert found is not None
    assert found == pytest.approx(((18 + 5 + 6) / 20, 1.0, 6.0, 5.5))
    assert summarise([]) is None


@given(joins=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 500), st.integers(1, 12)), min_size=1, max_size=12))
def test_closed_form_and_single_steps_agree(joins: list[tuple[int, int, int]]) -> None:
    """Each sequence joins at the first border after so many seconds."""
    joins.sort()
    assert _closed_form(joins) == pytest.approx(_step_by_step(joins))


def _closed_form(joins: list[tuple[int, int, int]]) -> list[float]:
    batch: Batch[int] = Batch(step_s)
    ended = [0.0] * len(joins)
    waiting = list(enumerate(joins))
    now = 0.0
    while waiting or len(batch):
        arrival = float(waiting[0][1][0]) if waiting else float("inf")
        if len(batch):
            at = max(arrival, now)
            now = min(batch.next_finish(), batch.next_border(at) if waiting else float("inf"))
        else:
            now = max(now, arrival)
        for number in batch.finished(now):
            batch.leave(number, now)
            ended[number] = now
        while waiting and waiting[0][1][0] <= now:
            number, (_, context, steps) = waiting.pop(0)
            batch.join(number, context, steps, now, now)
    return ended


def _step_by_step(joins: list[tuple[int, int, int]]) -> list[float]:
    ended = [0.0] * len(joins)
    running: dict[int, list[int]] = {}
    waiting = list(enumerate(joins))
    now = 0.0
    while waiting or running:
        if not running:
            now = max(now, float(waiting[0][1][0]))
        while waiting and waiting[0][1][0] <= now:
            number, (_, context, steps) = waiting.pop(0)
            running[number] = [context, steps]
        now += step_s(len(running), sum(context for context, _ in running.values()))
        for number, entry in list(running.items()):
            entry[0] += 1
            entry[1] -= 1
            if not entry[1]:
                ended[number] = now
                del running[number]
    return ended
