"""Parts of a batch, and how many of them move at once."""

from __future__ import annotations

import random

import pytest

from mooncake_core.store.division import SMALLEST_PART_BYTES, Division
from mooncake_core.store.width import FIRST_MOVES, TRIED_EVERY, WIDTHS, Way, Widths

WAY = Way(kind=1, transport="tcp", size_class=22)
MIB = 1 << 20


def sizes(division: Division[list[int]]) -> list[int]:
    return [sum(part) for part in division.parts]


def divide(objects: list[tuple[str, int]], width: int) -> Division[list[int]]:
    division: Division[list[int]] = Division(lambda node: [], sum(size for _, size in objects), lambda node: width)
    for node, size in objects:
        division.part(node).append(size)
        division.filled(node, size)
    return division


def test_a_batch_is_divided_into_parts_of_about_the_same_size() -> None:
    assert sizes(divide([("a", MIB // 16)] * 64, 2)) == [2 * MIB, 2 * MIB]
    assert sizes(divide([("a", MIB)] * 3, 2)) == [2 * MIB, MIB]


def test_what_is_small_stays_together() -> None:
    assert sizes(divide([("a", SMALLEST_PART_BYTES // 2)] * 3, 2)) == [SMALLEST_PART_BYTES * 3 // 2]
    assert sizes(divide([("a", MIB)] * 8, 1)) == [8 * MIB]


def test_each_node_has_parts_of_its_own_and_is_asked_about_once() -> None:
    asked: list[str] = []

    def width(node: str) -> int:
        asked.append(node)
        return 2 if node == "a" else 1

    division: Division[list[int]] = Division(lambda node: [], 8 * MIB, width)
    for number in range(8):
        node = "ab"[number % 2]
        division.part(node).append(number)
        division.filled(node, MIB)
    assert division.parts == [[0, 2, 4, 6], [1, 3, 5, 7]]  # of each node no more than half of all
    assert asked == ["a", "b"]


def test_long_bytes_are_divided_where_a_part_is_full_but_not_into_scraps() -> None:
    division: Division[list[int]] = Division(lambda node: [], 3 * MIB, lambda node: 2)
    division.part("a").append(MIB)
    division.filled("a", MIB)
    assert division.room("a", 2 * MIB) == MIB // 2
    assert division.room("a", MIB // 2 + 1) == MIB // 2 + 1
    assert division.room("b", 2 * MIB) == 2 * MIB


@pytest.mark.parametrize("seed", range(20))
def test_no_object_is_lost_or_divided(seed: int) -> None:
    rng = random.Random(seed)
    objects = [(rng.choice("abc"), rng.randrange(1, 4 * MIB)) for _ in range(rng.randrange(1, 40))]
    division = divide(objects, rng.choice([1, 2, 3]))
    assert sorted(size for part in division.parts for size in part) == sorted(size for _, size in objects)


def test_the_width_that_moves_more_is_taken_and_the_other_tried_again() -> None:
    widths = Widths()
    rates = {1: 1e9, 2: 3e9}
    chosen = []
    for _ in range(4 * TRIED_EVERY):
        width = widths.choose(WAY)
        chosen.append(width)
        widths.note(WAY, width, 4 * MIB, 4 * MIB / rates[width])
    assert set(chosen[: FIRST_MOVES * len(WIDTHS)]) == set(WIDTHS)
    later = chosen[FIRST_MOVES * len(WIDTHS) :]
    assert later.count(1) == pytest.approx(len(later) / TRIED_EVERY, abs=1)


def test_the_width_follows_when_the_other_one_becomes_better() -> None:
    widths = Widths()
    rates = {1: 1e9, 2: 3e9}
    chosen = []
    for move in range(20 * TRIED_EVERY):
        if move == 3 * TRIED_EVERY:
            rates = {1: 2e9, 2: 0.5e9}  # other work has taken the cores
        chosen.append(widths.choose(WAY))
        widths.note(WAY, chosen[-1], 4 * MIB, 4 * MIB / rates[chosen[-1]])
    assert chosen[TRIED_EVERY : 2 * TRIED_EVERY].count(1) <= 1
    assert chosen[-TRIED_EVERY:].count(2) <= 1


def test_each_way_is_measured_by_itself() -> None:
    widths = Widths()
    for _ in range(FIRST_MOVES * len(WIDTHS) + 1):
        width = widths.choose(WAY)
        widths.note(WAY, width, MIB, 1.0 / width)
    assert widths.choose(WAY) == 2
    assert widths.choose(WAY._replace(transport="shm")) == 1
