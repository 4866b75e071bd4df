"""Which way of sending a connection takes: the one that has shown to be the quicker on this machine, at this time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mooncake_tcp.pace import FEWEST_BYTES, FIRST_COMPARISONS, PAUSE, Pace

Rate = Callable[[bool], float]
"""Bytes per second, in parts or as a whole."""


def send(pace: Pace, count: int, rate: Rate, lengths: tuple[int, ...] = (4 * FEWEST_BYTES,)) -> list[bool]:
    """What was sent in parts, of so many payloads."""
    ways = []
    for number in range(count):
        length = lengths[number % len(lengths)]
        ways.append(pace.in_parts(length))
        pace.took(length, length / rate(ways[-1]))
    return ways


def noisy(whole: float, parts: float, seed: int) -> Rate:
    draw = random.Random(seed)
    return lambda in_parts: (parts if in_parts else whole) * draw.lognormvariate(0, 0.3)


LEARNING = 40 * PAUSE


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("whole", "parts"), [(4e9, 3e9), (3e9, 4.5e9)])
def test_the_quicker_way_is_taken_but_for_what_is_compared(whole: float, parts: float, seed: int) -> None:
    pace = Pace()
    send(pace, LEARNING, noisy(whole, parts, seed))
    ways = send(pace, 20 * (PAUSE + 2), noisy(whole, parts, seed + 100))
    assert ways.count(parts > whole) >= 0.9 * len(ways)


def test_a_slow_machine_for_a_while_is_nobodys_fault() -> None:
    clock = iter(1 + number // 3 % 2 for number in range(10**6))  # of three payloads, the next three take twice as long
    pace = Pace()
    rate: Rate = lambda in_parts: (3e9 if in_parts else 4e9) / next(clock)  # noqa: E731
    send(pace, LEARNING, rate)
    ways = send(pace, 10 * PAUSE, rate)
    assert ways.count(False) >= 0.9 * len(ways)


def test_what_was_learned_changes_with_the_machine() -> None:
    pace = Pace()
    send(pace, LEARNING, noisy(4e9, 3e9, 1))
    send(pace, 4 * LEARNING, noisy(3e9, 4e9, 2))
    ways = send(pace, 10 * PAUSE, noisy(3e9, 4e9, 3))
    assert ways.count(True) >= 0.9 * len(ways)


def test_payloads_of_other_lengths_are_not_compared() -> None:
    pace = Pace()
    send(
        pace, 100 * PAUSE, lambda in_parts: 9e9 if in_parts else 1e9, (FEWEST_BYTES, 2 * FEWEST_BYTES, 3 * FEWEST_BYTES)
    )
    assert pace.in_parts(FEWEST_BYTES) is False


def test_lengths_that_alternate_all_take_the_way_that_is_known() -> None:
    pace = Pace()
    send(pace, LEARNING, lambda in_parts: 9e9 if in_parts else 1e9)
    ways = send(pace, 10 * PAUSE, lambda in_parts: 9e9 if in_parts else 1e9, (FEWEST_BYTES, 2 * FEWEST_BYTES))
    assert ways.count(True) == len(ways)


def test_short_payloads_take_the_way_that_is_known_and_teach_nothing() -> None:
    pace = Pace()
    assert send(pace, 1000, lambda in_parts: 9e9 if in_parts else 1e9, (FEWEST_BYTES - 1,)) == [False] * 1000
    before = send(pace, 2 * FIRST_COMPARISONS, lambda in_parts: 9e9 if in_parts else 1e9)
    assert before.count(True) >= FIRST_COMPARISONS
    assert pace.in_parts(FEWEST_BYTES - 1) is True
