"""A node that was silent, was taken for dead, and is back with all it had: nothing that is gone comes back with it."""

from __future__ import annotations

import pytest

from mooncake_core.store import events as p
from mooncake_core.wire.messages.pool import Remove, RemoveAll
from tests.store.pool_harness import Harness


@pytest.fixture
def harness() -> Harness:
    made = Harness()
    for name in ("a", "b"):
        made.join(name)
    made.answer_all()
    return made


def fall_silent(harness: Harness, name: str) -> None:
    harness.feed(p.NodeLeft(name, harness.nodes[name].incarnation))


def come_back(harness: Harness, name: str) -> None:
    node = harness.nodes[name]
    harness.feed(p.NodeJoined(name, node.incarnation, node.offer()))
    harness.answer_all()
    assert harness.pool.check() == []


def test_what_it_had_is_there_again(harness: Harness) -> None:
    harness.store("k0", preferred="a")
    fall_silent(harness, "a")
    assert harness.exists("k0") == [False]
    come_back(harness, "a")
    assert harness.exists("k0") == [True]


def test_what_was_removed_meanwhile_stays_removed_and_its_space_becomes_free(harness: Harness) -> None:
    harness.store("k0", replicas=2)
    fall_silent(harness, "a")
    harness.ask(Remove(keys=["k0"], force=True))
    come_back(harness, "a")
    assert harness.exists("k0") == [False]
    harness.settle()
    assert harness.nodes["a"].slots == {}
    assert harness.pool.usage("a")[1] == 0


def test_so_does_what_was_there_when_all_was_removed_by_force(harness: Harness) -> None:
    harness.store("k0", preferred="a")
    fall_silent(harness, "a")
    harness.ask(RemoveAll(force=True))
    come_back(harness, "a")
    assert harness.exists("k0") == [False]


def test_what_was_put_after_a_removal_is_there_again(harness: Harness) -> None:
    harness.store("k0", preferred="b")
    harness.ask(Remove(keys=["k0"], force=True))
    harness.store("k0", preferred="a")
    fall_silent(harness, "a")
    come_back(harness, "a")
    assert harness.exists("k0") == [True]


def test_what_was_being_written_at_a_removal_and_was_committed_after_it_is_there_again(harness: Harness) -> None:
    """Its id is smaller than that of the removal."""
    harness.store("k0", preferred="b")
    later = harness.put("k0", preferred="a", upsert=True)
    harness.ask(Remove(keys=["k0"], force=True))
    harness.write(later)
    assert harness.end(later) == ""
    fall_silent(harness, "a")
    come_back(harness, "a")
    assert harness.exists("k0") == [True]


def test_an_object_that_was_replaced_meanwhile_does_not_come_back(harness: Harness) -> None:
    harness.store("k0", replicas=2)
    fall_silent(harness, "a")
    newer = harness.store("k0", upsert=True)
    come_back(harness, "a")
    found = harness.describe("k0")
    assert found is not None
    assert [placement.node for placement in found.replicas] == ["b"]
    assert newer.placements[0].node == "b"


def test_what_it_had_does_not_come_back_for_what_was_put_since_and_is_lost(harness: Harness) -> None:
    harness.store("k0", preferred="a")
    fall_silent(harness, "a")
    harness.store("k0", preferred="b")
    fall_silent(harness, "b")
    come_back(harness, "a")
    assert harness.exists("k0") == [False]
    come_back(harness, "b")
    found = harness.describe("k0")
    assert found is not None
    assert [placement.node for placement in found.replicas] == ["b"]


def test_what_only_it_had_can_be_removed_meanwhile(harness: Harness) -> None:
    harness.store("k0", preferred="a")
    fall_silent(harness, "a")
    harness.ask(Remove(keys=["k0"]))
    come_back(harness, "a")
    assert harness.exists("k0") == [False]


def test_a_key_that_is_not_there_is_not_remembered_while_nobody_is_away(harness: Harness) -> None:
    harness.ask(Remove(keys=[f"none{number}" for number in range(10)]))
    assert not harness.pool._removals._before
