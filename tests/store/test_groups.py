"""Objects of a group are evicted together, or not at all."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from mooncake_core.store import events as p
from mooncake_core.store.objects import PoolObject
from mooncake_core.store.pool import Pool
from mooncake_core.wire.messages.pool import Remove
from tests.store.pool_harness import Harness, NodeModel

BLOCK = 64 * 4


class CountedGroups:
    """How often a pool goes through all of a group to see whether it may go."""

    def __init__(self, pool: Pool) -> None:
        self.looks = 0
        self._must_stay = pool._index._must_stay
        pool._index._must_stay = self.must_stay  # type: ignore[method-assign]

    def must_stay(self, members: Collection[PoolObject]) -> bool:
        self.looks += 1
        return self._must_stay(members)


def press(harness: Harness, blocks: int = 14) -> None:
    """Evicts, one object's worth to begin with."""
    harness.now += 60
    harness.feed(p.Tick())
    harness.put("large", 64 * blocks)
    harness.answer_all()


def fill(harness: Harness, others: int = 6) -> None:
    """Three of a group, and others, the group's being the oldest."""
    for number in range(3):
        harness.store(f"g{number}", BLOCK, group="g")
    for number in range(others):
        harness.store(f"x{number}", BLOCK)


def group_is_there(harness: Harness) -> list[bool]:
    return harness.exists("g0", "g1", "g2")


def test_when_one_goes_all_go(harness: Harness) -> None:
    fill(harness)
    press(harness)
    assert group_is_there(harness) == [False] * 3
    assert harness.exists("x5") == [True]
    assert harness.pool.report(0).evicted >= 3


@pytest.mark.parametrize("holds", ["lease", "hard pin", "soft pin"])
def test_a_group_of_which_one_may_not_go_stays(harness: Harness, holds: str) -> None:
    fill(harness, others=5)
    harness.now += 60
    if holds == "lease":
        harness.get("g1")
    else:
        harness.pin("g1", hard=holds == "hard pin", soft_s=1000.0)
    harness.put("large", 64 * 20)
    assert group_is_there(harness) == [True] * 3
    assert harness.exists("x0") == [False]


def test_a_get_of_one_counts_as_a_use_of_all(harness: Harness) -> None:
    fill(harness)
    harness.get("g2")
    press(harness)
    assert group_is_there(harness) == [True] * 3
    assert harness.exists("x0") == [False]


def test_groups_along_one_chain_do_not_hold_each_other(harness: Harness) -> None:
    for number in range(9):
        harness.store(f"k{number}", BLOCK, parent=f"k{number - 1}" if number else "", group="gh"[number % 2])
    press(harness, 58)
    assert not any(harness.exists(*[f"k{number}" for number in range(9)]))


def test_a_chain_within_a_group_goes_with_it(harness: Harness) -> None:
    for number in range(4):
        harness.store(f"g{number}", BLOCK, parent=f"g{number - 1}" if number else "", group="g")
    for number in range(5):
        harness.store(f"x{number}", BLOCK)
    press(harness)
    assert harness.exists("g0", "g1", "g2", "g3") == [False] * 4


def test_a_group_goes_from_all_its_nodes() -> None:
    harness = Harness()
    harness.join("a")
    harness.join("b")
    harness.answer_all()
    harness.store("g0", BLOCK, group="g", preferred="a")
    harness.store("g1", BLOCK, group="g", preferred="b")
    for number in range(9):
        harness.store(f"x{number}", BLOCK, preferred="a")
    assert harness.exists("g0", "g1") == [False, False]
    assert harness.index["b"] == {}


def test_a_softly_pinned_group_goes_where_nothing_else_can(harness: Harness) -> None:
    for number in range(3):
        harness.store(f"g{number}", BLOCK, group="g", soft_pin_s=1000.0)
    press(harness, 58)
    assert group_is_there(harness) == [False] * 3


def test_removing_one_removes_that_one(harness: Harness) -> None:
    fill(harness)
    harness.ask(Remove(keys=["g0"]))
    assert group_is_there(harness) == [False, True, True]
    press(harness)
    assert group_is_there(harness) == [False] * 3


def test_objects_of_a_group_lie_on_one_node_where_that_is_asked_for() -> None:
    harness = Harness()
    for name in ("a", "b", "c"):
        harness.join(name)
    harness.answer_all()
    harness.store("g0", BLOCK, group="g", preferred="c")
    grants = [harness.store(f"g{number}", BLOCK, group="g", same_node=True) for number in range(1, 5)]
    assert {grant.placements[0].node for grant in grants} == {"c"}


@pytest.mark.parametrize("how", ["removed", "unpinned"])
def test_a_group_goes_when_what_held_it_has_gone(harness: Harness, how: str) -> None:
    for number in range(3):
        harness.store(f"g{number}", BLOCK, group="g", parent="g1" if number == 2 else "")
    harness.pin("g1", hard=True)
    harness.now += 60
    harness.put("large", 64 * 50)
    assert group_is_there(harness) == [True] * 3
    if how == "unpinned":
        harness.pin("g1")
    else:
        harness.ask(Remove(keys=["g1"]))
    assert harness.pool.check() == []
    harness.put("large", 64 * 50)
    assert group_is_there(harness) == [False] * 3


def test_a_group_that_may_not_go_is_looked_at_once() -> None:
    harness = Harness()
    node = NodeModel("a", next(harness.incarnations), capacity=128 * 1000, num_slots=2000)
    harness.nodes["a"] = node
    harness.feed(p.NodeJoined("a", node.incarnation, node.offer()))
    harness.answer_all()
    for number in range(500):
        harness.store(f"g{number}", group="g")
    harness.get("g7")
    counted = CountedGroups(harness.pool)
    harness.put("large", 128 * 600)
    assert counted.looks == 1
    harness.put("large", 128 * 600)
    assert counted.looks == 1
