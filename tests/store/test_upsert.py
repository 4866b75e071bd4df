"""A put of a key that exists, which replaces it."""

from __future__ import annotations

import pytest

from mooncake_core.errors import NoSpace, ObjectBusy, ObjectExists, ObjectLeased, ObjectNotFound, StaleAllocation
from mooncake_core.store import events as p
from mooncake_core.store.pool_settings import MARGIN_S
from mooncake_core.wire.messages.pool import Remove, RemoveAll, Removed, RemovedAll
from mooncake_core.wire.messages.tiering import DRAM
from tests.store.pool_harness import SETTINGS, Harness


def allocation(harness: Harness, key: str = "k") -> int | None:
    """Of what a reader gets."""
    (found,) = harness.get(key).objects
    return None if found is None else found.allocation_id


def test_readers_see_the_old_object_until_the_commit_and_then_the_new_one(harness: Harness) -> None:
    old = harness.store("k")
    new = harness.put("k", 128, upsert=True)
    assert allocation(harness) == old.allocation_id
    harness.write(new, 128)
    assert allocation(harness) == old.allocation_id
    assert harness.end(new) == ""
    assert allocation(harness) == new.allocation_id
    described = harness.describe("k")
    assert described is not None
    assert described.size_bytes == 128
    assert harness.pool.report(0).num_objects == 1
    assert harness.index == {"a": {"k": DRAM}}


def test_the_space_of_what_was_replaced_waits_for_its_readers(harness: Harness) -> None:
    harness.store("k", 64 * 8)
    harness.get("k")
    new = harness.store("k", 64, upsert=True)
    harness.answer_all()
    assert harness.pool.report(harness.now).quarantined_bytes == 64 * 8 + 64
    harness.now += SETTINGS.read_lease_s + MARGIN_S
    harness.feed(p.Tick())
    harness.answer_all()
    assert harness.pool.usage("a")[1] == 128
    assert allocation(harness) == new.allocation_id


def test_an_upsert_of_a_key_that_is_not_there_is_a_put(harness: Harness) -> None:
    grant = harness.put("k", upsert=True)
    assert harness.exists("k") == [False]
    assert harness.end(grant) == ""
    assert harness.exists("k") == [True]


def test_a_key_has_one_writer_at_a_time(harness: Harness) -> None:
    first = harness.put("k")
    assert harness.put("k", upsert=True).refusal == ObjectBusy.code
    assert harness.put("k").refusal == ObjectExists.code
    harness.end(first)
    second = harness.put("k", upsert=True)
    assert second.placements
    assert harness.put("k", upsert=True).refusal == ObjectBusy.code
    assert harness.put("k").refusal == ObjectExists.code
    assert harness.end(second) == ""
    assert harness.put("k", upsert=True).placements


@pytest.mark.parametrize("way", ["revoked", "silent", "lost"])
def test_an_upsert_that_comes_to_nothing_leaves_the_old_object(harness: Harness, way: str) -> None:
    old = harness.store("k")
    new = harness.put("k", 128, upsert=True)
    if way == "revoked":
        harness.end(new, revoke=True)
    elif way == "silent":
        harness.now += SETTINGS.writer_deadline_s + MARGIN_S
        harness.feed(p.Tick())
        harness.answer_all()
        assert harness.end(new) == StaleAllocation.code
    else:
        assert harness.end(new, nodes=[]) == StaleAllocation.code
    harness.settle()
    assert allocation(harness) == old.allocation_id
    assert harness.pool.usage("a")[1] == 128
    assert harness.put("k", upsert=True).placements


def test_what_is_removed_while_it_is_replaced_is_gone_until_the_commit(harness: Harness) -> None:
    harness.store("k")
    new = harness.put("k", upsert=True)
    assert harness.ask(Remove(keys=["k"])) == Removed(refusals=[""])
    assert harness.exists("k") == [False]
    assert harness.put("k").refusal == ObjectExists.code
    assert harness.ask(Remove(keys=["k"])) == Removed(refusals=[ObjectNotFound.code])
    assert harness.end(new) == ""
    assert harness.exists("k") == [True]


def test_a_forced_removal_of_all_takes_the_old_object_and_the_new_one(harness: Harness) -> None:
    harness.store("k")
    new = harness.put("k", upsert=True)
    assert harness.ask(RemoveAll(force=True)) == RemovedAll(removed=1, kept=0)
    assert harness.end(new) == StaleAllocation.code
    assert harness.exists("k") == [False]
    harness.settle()
    assert harness.pool.usage("a")[1] == 0


def test_an_unforced_removal_of_all_leaves_the_upsert_under_way(harness: Harness) -> None:
    harness.store("k")
    harness.get("k")
    new = harness.put("k", upsert=True)
    assert harness.ask(RemoveAll()) == RemovedAll(removed=0, kept=1)
    assert harness.ask(Remove(keys=["k"])) == Removed(refusals=[ObjectLeased.code])
    assert harness.end(new) == ""
    assert allocation(harness) == new.allocation_id


def test_the_old_object_may_be_evicted_while_it_is_replaced(harness: Harness) -> None:
    for number in range(8):
        harness.store(f"k{number}", 64 * 4)
    harness.now += 60
    new = harness.put("k0", 64, upsert=True)
    assert harness.put("more", 64 * 30).refusal == NoSpace.code
    assert harness.exists("k0") == [False]
    assert harness.end(new) == ""
    assert harness.exists("k0") == [True]


def test_an_upsert_outlives_the_node_of_the_old_object(harness: Harness) -> None:
    harness.store("k")
    harness.join("b")
    harness.answer_all()
    new = harness.put("k", preferred="b", upsert=True)
    harness.feed(p.NodeLeft("a", harness.nodes["a"].incarnation))
    assert harness.exists("k") == [False]
    assert harness.end(new) == ""
    assert allocation(harness) == new.allocation_id
    assert harness.index == {"a": {}, "b": {"k": DRAM}}


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_new_master_takes_the_later_of_two_committed_objects(harness: Harness, first: str) -> None:
    harness.store("k")
    harness.join("b")
    harness.answer_all()
    old = dict(harness.nodes["a"].slots)
    new = harness.store("k", preferred="b", upsert=True)
    harness.nodes["a"].slots = old  # the mark never came
    for name in ("a", "b"):
        assert len(harness.nodes[name].slots) == 1
    harness.restart()
    harness.unanswered.sort(key=lambda event: getattr(event, "name", "") != first)
    harness.answer_all()
    assert allocation(harness) == new.allocation_id
    harness.settle()
    assert harness.pool.usage("a")[1] == 0
    assert harness.pool.check() == []


def test_what_a_node_reports_late_is_there_although_its_key_is_put_anew(harness: Harness) -> None:
    old = harness.store("k")
    harness.join("b")
    harness.answer_all()
    harness.restart()
    answers = harness.unanswered
    late = [event for event in answers if getattr(event, "name", "") == "a"]
    harness.unanswered = [event for event in answers if event not in late]
    harness.answer_all()
    new = harness.put("k")
    harness.unanswered = late
    harness.answer_all()
    assert allocation(harness) == old.allocation_id
    harness.end(new, revoke=True)
    assert allocation(harness) == old.allocation_id
    assert harness.pool.check() == []


def test_pins_and_group_stay_where_an_upsert_says_nothing_of_them(harness: Harness) -> None:
    harness.store("k", hard_pin=True, group="g")
    harness.store("k", upsert=True)
    described = harness.describe("k")
    assert described is not None
    assert (described.hard_pinned, described.group) == (True, "g")
    harness.store("k", upsert=True, hard_pin=False, soft_pin_s=5.0, group="h")
    described = harness.describe("k")
    assert described is not None
    assert (described.hard_pinned, described.soft_pin_s, described.group) == (False, 5.0, "h")
    harness.store("k", upsert=True, soft_pin_s=0.0)
    described = harness.describe("k")
    assert described is not None
    assert (described.hard_pinned, described.soft_pin_s, described.group) == (False, 0.0, "h")


def test_a_chain_goes_on_from_what_has_replaced_its_head(harness: Harness) -> None:
    harness.store("head")
    harness.store("tail", parent="head")
    harness.store("head", upsert=True)
    assert harness.pool.check() == []
    harness.now += 60
    harness.put("more", 64 * 58)
    assert harness.exists("head", "tail") == [False, False]
