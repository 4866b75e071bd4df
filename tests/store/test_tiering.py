"""What the pool decides about tiers, case by case."""

from __future__ import annotations

import pytest

from mooncake_core.errors import ObjectExists
from mooncake_core.store import events as p
from mooncake_core.store.removals import Removals
from mooncake_core.store.tier_events import (
    AskTierReport,
    DemoteObjects,
    ForgetObjects,
    ObjectsLoaded,
    PromoteObjects,
    TierAnswered,
)
from mooncake_core.store.tier_node import COPY_DEADLINE_S
from mooncake_core.store.tiers.contract import TierKey
from mooncake_core.wire.messages.objects import RemoveReplicas
from mooncake_core.wire.messages.pool import Got, Remove, RemoveAll, Removed
from mooncake_core.wire.messages.tiering import DRAM, LOWER, Prefetch, Prefetching
from tests.store.pool_harness import SETTINGS
from tests.store.tier_harness import TieredHarness, TieredNodeModel

BIG = 64 * 12
"""Four of these fill a node beyond its high watermark."""


@pytest.fixture
def harness() -> TieredHarness:
    made = TieredHarness()
    made.join("a")
    made.answer_all()
    return made


def demote(harness: TieredHarness, *keys: str) -> None:
    """Puts objects, and others that drive them out of DRAM."""
    for key in keys:
        store(harness, key)
    number = 0
    while any(in_dram(harness, key) for key in keys):
        number += 1
        store(harness, f"filler-{number}-{harness.now}")
        assert number < 20


def store(harness: TieredHarness, key: str) -> None:
    """Puts an object; where there is no room, once the nodes have answered."""
    grant = harness.put(key, BIG)
    while not grant.placements:
        harness.answer_all()
        grant = harness.put(key, BIG)
    harness.write(grant, BIG)
    assert harness.end(grant) == ""
    harness.answer_all()


def in_dram(harness: TieredHarness, key: str) -> bool:
    return any(stored.key == key for node in harness.nodes.values() for stored in node.slots.values())


def found(got: Got) -> list[bool]:
    return [located is not None for located in got.objects]


def test_space_is_given_up_only_when_the_copy_was_made(harness: TieredHarness) -> None:
    for number in range(4):
        harness.store(f"k{number}", BIG)
    harness.put("more", BIG)
    assert harness.commands(DemoteObjects)
    assert set(harness.tier_of("a")) >= {"k0"}, "the node has it, the pool does not know yet"
    assert in_dram(harness, "k0")
    assert harness.exists("k0") == [True]
    used = harness.pool.usage("a")[1]
    harness.answer_all()
    assert not in_dram(harness, "k0")
    assert harness.pool.usage("a")[1] < used
    assert harness.exists("k0") == [True]
    assert harness.pool.report(harness.now).demoted > 0
    assert harness.pool.check() == []


def test_what_is_only_in_a_tier_is_there_and_a_get_waits_for_it(harness: TieredHarness) -> None:
    demote(harness, "k")
    assert harness.exists("k") == [True]
    assert harness.put("k").refusal == ObjectExists.code
    token = harness.begin_get("k", "unknown")
    assert token not in harness.answers
    harness.answer_all()
    got = harness.answers[token]
    assert found(got) == [True, False]
    (placement,) = got.objects[0].placements  # type: ignore[union-attr]
    stored = harness.nodes["a"].slots[placement.slot]
    assert (stored.key, stored.offset) == ("k", placement.offset)
    report = harness.pool.report(harness.now)
    assert (report.hits_by_tier, report.hit_bytes_by_tier, report.misses) == (
        {"dram": 0, "lmdb": 1},
        {"dram": 0, "lmdb": BIG},
        1,
    )
    harness.get("k")
    assert harness.pool.report(harness.now).hits_by_tier == {"dram": 1, "lmdb": 1}
    assert harness.pool.check() == []


def test_room_is_made_for_what_is_promoted(harness: TieredHarness) -> None:
    demote(harness, "k0", "k1")
    token = harness.begin_get("k0", "k1")
    harness.answer_all()
    assert found(harness.answers[token]) == [True, True]
    assert harness.pool.check() == []


def test_a_promotion_that_does_not_come_in_time_is_a_miss_and_comes_to_use_later(harness: TieredHarness) -> None:
    demote(harness, "k")
    token = harness.begin_get("k")
    harness.now += SETTINGS.promote_timeout_s + 0.1
    late, harness.unanswered = harness.unanswered, []
    harness.feed(p.Tick())
    assert found(harness.answers[token]) == [False]
    assert harness.exists("k") == [True]
    harness.unanswered = late
    harness.answer_all()
    assert found(harness.get("k")) == [True]
    assert harness.pool.check() == []


def test_what_a_tier_cannot_give_is_a_miss_and_its_space_is_free_again(harness: TieredHarness) -> None:
    demote(harness, "k")
    del harness.tier_of("a")["k"]  # damaged, say
    token = harness.begin_get("k")
    harness.answer_all()
    assert found(harness.answers[token]) == [False]
    assert harness.exists("k") == [False]
    assert harness.put("k").placements
    assert harness.pool.check() == []


def test_an_unanswered_promotion_is_asked_for_again_and_keeps_its_space(harness: TieredHarness) -> None:
    demote(harness, "k")
    harness.begin_get("k")
    (lost,) = harness.unanswered
    assert isinstance(lost, TierAnswered)
    harness.unanswered.clear()
    used = harness.pool.usage("a")[1]
    harness.feed(TierAnswered(lost.asked, None))
    harness.ask(RemoveAll(force=True))
    harness.answer_all()
    assert harness.pool.usage("a")[1] > 0, "the node may still write there"
    assert used > 0
    harness.settle()
    assert len(harness.commands(PromoteObjects)) == 2
    assert harness.pool.usage("a")[1] == 0
    assert not in_dram(harness, "k")
    assert harness.pool.check() == []


def test_a_promoted_object_leaves_again_without_a_second_copy(harness: TieredHarness) -> None:
    demote(harness, "k")
    harness.begin_get("k")
    harness.answer_all()
    assert in_dram(harness, "k")
    harness.now += 60
    harness.asked.clear()
    demote(harness)
    for number in range(6):
        harness.store(f"other{number}", BIG)
        harness.answer_all()
    assert not in_dram(harness, "k")
    slots = [name.allocation_id for asked in harness.commands(DemoteObjects) for name in asked.slots]  # type: ignore[union-attr]
    assert harness.tier_of("a")["k"].allocation_id not in slots
    assert harness.exists("k") == [True]


def test_an_object_that_is_read_while_it_leaves_stays(harness: TieredHarness) -> None:
    for number in range(4):
        harness.store(f"k{number}", BIG)
    harness.put("more", BIG)
    assert found(harness.get("k0")) == [True]
    harness.answer_all()
    assert in_dram(harness, "k0")
    assert found(harness.get("k0")) == [True]
    assert "k0" in harness.tier_of("a")
    assert harness.pool.check() == []


def test_a_chain_is_demoted_at_once_the_tail_first(harness: TieredHarness) -> None:
    for number in range(8):
        harness.store(f"k{number}", 64 * 5, parent=f"k{number - 1}" if number else "")
    harness.put("more", 64 * 30)
    (asked,) = harness.commands(DemoteObjects)
    assert isinstance(asked, DemoteObjects)
    slots = harness.nodes["a"].slots
    keys = [slots[name.slot].key for name in asked.slots]
    assert len(keys) > 2
    assert keys == sorted(keys, reverse=True)
    assert keys[0] == "k7"


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_demotion_that_fails_costs_the_object_and_not_the_space(harness: TieredHarness, is_answered: bool) -> None:
    node = harness.nodes["a"]
    assert isinstance(node, TieredNodeModel)
    node.refuses = True
    for number in range(4):
        harness.store(f"k{number}", BIG)
    harness.put("more", BIG)
    if is_answered:
        harness.answer_all()
    else:
        (lost,) = (event for event in harness.unanswered if isinstance(event, TierAnswered))
        harness.unanswered.remove(lost)
        harness.feed(TierAnswered(lost.asked, None))
        harness.answer_all()
    assert harness.exists("k0") == [False]
    assert harness.put("last", BIG).placements
    assert harness.pool.check() == []


def test_what_waits_too_long_to_be_copied_goes_without(harness: TieredHarness) -> None:
    for number in range(4):
        harness.store(f"k{number}", BIG)
    harness.put("more", BIG)  # it is being copied, and the node does not answer
    waiting = harness.exists("k1", "k2", "k3")
    harness.put("still-more", BIG * 3)
    harness.now += COPY_DEADLINE_S + 1
    harness.feed(p.Tick())
    assert sum(harness.exists("k1", "k2", "k3")) < sum(waiting)
    assert harness.pool.check() == []


def test_a_node_that_comes_back_brings_what_its_tier_holds(harness: TieredHarness) -> None:
    demote(harness, "k0", "k1", "k2", "k3")
    known = set(harness.tier_of("a"))
    harness.leave("a")
    assert harness.exists("k0", "k1", "k2", "k3") == [False] * 4
    harness.join("a")
    harness.answer_all()
    assert len(harness.commands(AskTierReport)) > 1
    assert harness.exists(*sorted(known)) == [True] * len(known)
    token = harness.begin_get("k0", "k3")
    harness.answer_all()
    assert found(harness.answers[token]) == [True, True]
    assert harness.pool.check() == []


def test_a_new_master_learns_what_tiers_hold(harness: TieredHarness) -> None:
    demote(harness, "k0", "k1")
    in_tier, in_memory = set(harness.tier_of("a")), {stored.key for stored in harness.nodes["a"].slots.values()}
    harness.restart()
    harness.answer_all()
    everything = sorted(in_tier | in_memory)
    assert harness.exists(*everything) == [True] * len(everything)
    assert harness.index["a"] == {**dict.fromkeys(in_tier, LOWER), **dict.fromkeys(in_memory, DRAM)}
    assert harness.pool.check() == []


def test_removal_reaches_the_tier_and_is_repeated_until_confirmed(harness: TieredHarness) -> None:
    demote(harness, "k")
    harness.ask(Remove(keys=["k"]))
    assert harness.exists("k") == [False]
    (asked,) = harness.commands(ForgetObjects)
    harness.unanswered.clear()
    harness.feed(TierAnswered(asked, None))
    harness.now += 10
    harness.feed(p.Tick())
    assert len(harness.commands(ForgetObjects)) == 2
    harness.answer_all()
    assert "k" not in harness.tier_of("a")
    harness.settle()
    assert len(harness.commands(ForgetObjects)) == 2


def test_a_node_gives_up_what_its_tier_has_of_an_object_that_another_node_has(harness: TieredHarness) -> None:
    harness.join("b")
    harness.answer_all()
    harness.store("k", BIG, replicas=2)
    number = 0
    while "k" not in harness.tier_of("a"):
        number += 1
        store(harness, f"filler-{number}")
        assert number < 20
    assert harness.ask(RemoveReplicas(keys=["k"], node="a")) == Removed(refusals=[""])
    harness.answer_all()
    assert "k" not in harness.tier_of("a")
    found = harness.describe("k")
    assert found is not None
    assert {*found.tiered_on, *(place.node for place in found.replicas)} == {"b"}
    assert harness.ask(RemoveReplicas(keys=["k"], node="a")) == Removed(refusals=["object_not_found"])
    assert harness.ask(RemoveReplicas(keys=["k"], node="b")) == Removed(refusals=[""])
    harness.answer_all()
    assert (harness.exists("k"), "k" in harness.tier_of("b")) == ([False], False)
    assert harness.pool.check() == []


@pytest.mark.parametrize("remove_all", [False, True])
def test_what_was_removed_while_its_node_was_away_does_not_come_back(harness: TieredHarness, remove_all: bool) -> None:
    demote(harness, "k", "kept")
    harness.leave("a")
    harness.join("b")
    harness.answer_all()
    grant = harness.store("k", 64) if not remove_all else None
    harness.ask(RemoveAll(force=True) if remove_all else Remove(keys=["k"]))
    harness.join("a")
    harness.answer_all()
    assert harness.exists("k", "kept") == [False, not remove_all]
    assert "k" not in harness.tier_of("a")
    assert grant is None or grant.placements[0].node == "b"
    harness.store("k", 64)
    assert harness.exists("k") == [True]
    assert harness.pool.check() == []


def test_of_two_objects_of_a_key_the_newer_one_counts(harness: TieredHarness) -> None:
    demote(harness, "k")
    harness.leave("a")
    harness.join("b")
    harness.answer_all()
    grant = harness.store("k", 64)
    harness.join("a")
    harness.answer_all()
    (placement,) = harness.get("k").objects[0].placements  # type: ignore[union-attr]
    assert placement.slot == grant.placements[0].slot
    assert "k" not in harness.tier_of("a")


def test_a_newer_object_of_a_key_in_dram_counts_more_than_one_in_a_tier_whoever_tells_first(
    harness: TieredHarness,
) -> None:
    demote(harness, "k")
    harness.leave("a")
    harness.join("b")
    harness.answer_all()
    harness.store("k", 64)
    gone = harness.nodes.pop("b")
    harness.restart()
    harness.answer_all()
    harness.join("a")
    harness.answer_all()
    assert harness.exists("k") == [True], "the older one, of which nobody knows better"
    harness.nodes["b"] = gone
    harness.feed(p.NodeJoined("b", gone.incarnation, gone.offer()))
    harness.answer_all()
    (placement,) = harness.get("k").objects[0].placements  # type: ignore[union-attr]
    assert placement.node == "b"
    assert harness.pool.check() == []


def test_an_object_removed_while_it_is_copied_is_forgotten_by_the_tier(harness: TieredHarness) -> None:
    for number in range(4):
        harness.store(f"k{number}", BIG)
    harness.put("more", BIG)
    harness.ask(Remove(keys=["k0"], force=True))
    harness.answer_all()
    assert harness.exists("k0") == [False]
    assert "k0" not in harness.tier_of("a")
    assert harness.pool.check() == []


def test_written_through_objects_are_copied_when_they_are_put() -> None:
    harness = TieredHarness()
    harness.join("a", write_through=True)
    harness.answer_all()
    harness.store("k", BIG)
    harness.answer_all()
    assert "k" in harness.tier_of("a")
    assert in_dram(harness, "k")
    assert harness.index["a"] == {"k": DRAM}
    harness.leave("a")
    harness.join("a", write_through=True)
    harness.answer_all()
    assert harness.exists("k") == [True]


def test_prefetch_brings_objects_up_before_they_are_read(harness: TieredHarness) -> None:
    demote(harness, "k")
    assert harness.index["a"]["k"] == LOWER
    assert harness.ask(Prefetch(keys=["k", "unknown"])) == Prefetching(num_objects=1)
    harness.answer_all()
    assert in_dram(harness, "k")
    assert harness.index["a"]["k"] == DRAM
    assert found(harness.get("k")) == [True]
    assert harness.ask(Prefetch(keys=["k"])) == Prefetching(num_objects=0)


def test_the_pace_of_a_node_is_told_when_nothing_more_comes_up(harness: TieredHarness) -> None:
    demote(harness, "k0", "k1", "k2")
    harness.loaded.clear()
    harness.ask(Prefetch(keys=["k0"]))
    harness.now += 0.25
    harness.ask(Prefetch(keys=["k1"]))  # while the first one comes
    harness.now += 0.25
    assert len(harness.commands(PromoteObjects)) == 2
    harness.answer_all()
    assert harness.loaded == [ObjectsLoaded("a", 2 * BIG, pytest.approx(0.5))]
    harness.ask(Prefetch(keys=["k2"]))
    harness.unanswered = [TierAnswered(harness.asked[-1], None)]  # it did not come in time
    harness.answer_all()
    assert len(harness.loaded) == 1


def test_what_a_tier_drops_is_there_no_more(harness: TieredHarness) -> None:
    node = harness.nodes["a"]
    assert isinstance(node, TieredNodeModel)
    node.most_objects = 2
    demote(harness, "k0", "k1", "k2", "k3", "k4", "k5")
    assert len(node.tier) == 2
    in_memory = {stored.key for stored in node.slots.values()}
    expected = {**dict.fromkeys(node.tier, LOWER), **dict.fromkeys(in_memory, DRAM)}
    assert {key for key in (f"k{number}" for number in range(6)) if harness.exists(key) == [True]} <= set(expected)
    assert harness.index["a"] == expected


def test_removals_give_up_the_oldest_keys_together_with_all_that_old() -> None:
    removals = Removals(most_keys=2)
    for number, key in enumerate(("a", "b", "c"), 10):
        removals.removed(key, number)
    assert removals.covers(TierKey("a", 9))
    assert removals.covers(TierKey("other", 9)), "as old as what cannot be told any more"
    assert not removals.covers(TierKey("other", 10))
    assert removals.covers(TierKey("c", 11))
    assert not removals.covers(TierKey("c", 12))
