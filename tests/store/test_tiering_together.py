"""Tiers with upserts, pins, groups, tenants, chains, rounds of eviction, and draining."""

from __future__ import annotations

from typing import Any

import pytest

from mooncake_core.store import events as p
from mooncake_core.store.tier_events import AskTierReport, DemoteObjects, ForgetObjects, PromoteObjects
from mooncake_core.wire.messages.objects import ListTenants, TenantUsage
from mooncake_core.wire.messages.pool import Get, Got, NewObject, PutStart, PutStarted, Remove, RemoveAll
from mooncake_core.wire.messages.tasks import DrainNode, Evicted, EvictObjects
from tests.store.test_tiering import BIG, demote, found, in_dram
from tests.store.tier_harness import TieredHarness


@pytest.fixture
def harness() -> TieredHarness:
    made = TieredHarness()
    made.join("a")
    made.answer_all()
    return made


def evict_all(harness: TieredHarness) -> Evicted:
    evicted = harness.ask(EvictObjects(node="a"))
    assert isinstance(evicted, Evicted)
    return evicted


def get(harness: TieredHarness, *keys: str, **options: Any) -> Got:
    """The answer, when all nodes have done their part."""
    token = next(harness.tokens)
    harness.feed(p.Asked(token, Get(keys=list(keys), **options)))
    harness.answer_all()
    return harness.answers[token]


def usage(harness: TieredHarness, tenant: str) -> TenantUsage:
    answer: Any = harness.ask(ListTenants())
    return next(found for found in answer.tenants if found.tenant == tenant)


def test_an_upsert_replaces_what_is_only_in_a_tier(harness: TieredHarness) -> None:
    old = harness.store("k", BIG)
    evict_all(harness)
    harness.answer_all()
    assert not in_dram(harness, "k")
    new = harness.store("k", BIG, upsert=True)
    harness.answer_all()
    assert harness.commands(ForgetObjects)
    assert "k" not in harness.tier_of("a")
    (located,) = harness.get("k").objects
    assert located is not None
    assert located.allocation_id == new.allocation_id != old.allocation_id
    assert harness.pool.check() == []


def test_what_was_replaced_while_its_node_was_away_does_not_come_back(harness: TieredHarness) -> None:
    harness.join("b")
    harness.answer_all()
    harness.store("k", BIG, replicas=2)
    evict_all(harness)
    harness.answer_all()
    assert "k" in harness.tier_of("a")
    harness.leave("a")
    harness.store("k", BIG, upsert=True)
    harness.leave("b")
    del harness.nodes["b"]
    harness.join("a")
    harness.answer_all()
    assert harness.exists("k") == [False]
    assert "k" not in harness.tier_of("a")


def test_of_an_object_in_dram_and_a_newer_one_in_a_tier_the_newer_counts_for_a_new_master(
    harness: TieredHarness,
) -> None:
    harness.join("b")
    harness.answer_all()
    harness.store("k", BIG, preferred="b")
    stale = {slot: stored for slot, stored in harness.nodes["b"].slots.items() if stored.key == "k"}
    new = harness.store("k", BIG, upsert=True, preferred="a")
    harness.answer_all()
    evict_all(harness)
    harness.answer_all()
    harness.nodes["b"].slots |= stale  # the word that it was replaced did not arrive
    harness.restart()
    harness.answer_all()
    (located,) = get(harness, "k").objects
    assert located is not None
    assert located.allocation_id == new.allocation_id
    assert harness.pool.check() == []


def test_a_remove_while_an_upsert_is_under_way_does_not_keep_the_new_object_from_the_tier(
    harness: TieredHarness,
) -> None:
    harness.store("k", BIG)
    grant = harness.put("k", BIG, upsert=True)
    harness.ask(Remove(keys=["k"]))
    harness.write(grant, BIG)
    assert harness.end(grant) == ""
    evict_all(harness)
    harness.answer_all()
    assert harness.exists("k") == [True]
    assert "k" in harness.tier_of("a")


def test_a_group_leaves_as_a_whole_and_stays_a_group(harness: TieredHarness) -> None:
    for number in range(3):
        harness.store(f"k{number}", 64, group="g")
    assert evict_all(harness).objects == 3
    (asked,) = harness.commands(DemoteObjects)
    assert len(asked.slots) == 3  # type: ignore[union-attr]
    harness.answer_all()
    assert set(harness.tier_of("a")) == {"k0", "k1", "k2"}
    assert found(get(harness, "k1")) == [True]
    assert harness.describe("k0").group == harness.describe("k1").group == "g"  # type: ignore[union-attr]
    harness.now += 60
    assert evict_all(harness).objects == 1, "the others are in DRAM no more"
    assert harness.pool.check() == []


def test_a_pinned_member_that_leaves_dram_with_its_node_holds_its_group_no_more(harness: TieredHarness) -> None:
    harness.join("b")
    harness.answer_all()
    harness.store("k0", 64, group="g", preferred="a")
    harness.store("k1", 64, group="g", preferred="b", hard_pin=True)
    assert evict_all(harness).objects == 0
    harness.leave("b")
    assert evict_all(harness).objects == 1


def test_a_pin_lasts_while_its_object_is_in_a_tier_and_counts_again_in_dram(harness: TieredHarness) -> None:
    harness.store("k", BIG)
    evict_all(harness)
    harness.answer_all()
    described = harness.describe("k")
    assert described is not None
    assert (described.replicas, described.tiered_on) == ((), ["a"])
    assert harness.pin("k", hard=True) == [""]
    assert found(get(harness, "k")) == [True]
    harness.now += 60
    assert evict_all(harness).objects == 0
    assert harness.describe("k").hard_pinned  # type: ignore[union-attr]
    assert harness.pin("k") == [""]
    assert evict_all(harness).objects == 1
    assert harness.pool.check() == []


def test_what_is_pinned_while_it_leaves_stays(harness: TieredHarness) -> None:
    harness.store("k", BIG)
    assert evict_all(harness).objects == 1
    assert harness.pin("k", soft_s=1e6) == [""]
    harness.answer_all()
    assert in_dram(harness, "k")
    assert harness.pool.report(harness.now).demoted == 0
    assert harness.pool.check() == []


def test_what_stayed_because_it_was_read_can_leave_again(harness: TieredHarness) -> None:
    harness.store("k", BIG)
    evict_all(harness)
    assert found(harness.get("k")) == [True]
    harness.answer_all()
    harness.now += 60
    assert evict_all(harness).objects == 1
    harness.answer_all()
    assert not in_dram(harness, "k")


def test_a_chain_goes_on_leaving_when_its_tail_is_in_a_tier(harness: TieredHarness) -> None:
    harness.store("k0", BIG)
    harness.store("k1", BIG, parent="k0")
    harness.get("k1")
    assert evict_all(harness).objects == 0, "the tail is read, the head has a tail"
    harness.now += 60
    assert evict_all(harness).objects == 2
    harness.answer_all()
    assert found(get(harness, "k1")) == [True]
    assert not in_dram(harness, "k0")
    assert harness.pool.check() == []


def test_a_put_that_is_tried_again_drives_out_no_more_while_space_is_on_its_way(harness: TieredHarness) -> None:
    for number in range(6):
        harness.store(f"k{number}", 64 * 6)
    for _ in range(5):
        assert harness.put("more", 64 * 20).refusal == "no_space"
    leaving = len(harness.commands(DemoteObjects)[0].slots)  # type: ignore[union-attr]
    harness.answer_all()
    report = harness.pool.report(harness.now)
    assert (report.evicted, report.stalled_rounds) == (leaving, 0)
    assert harness.put("more", 64 * 20).placements


def test_space_that_is_on_its_way_is_worth_waiting_for(harness: TieredHarness) -> None:
    for number in range(4):
        harness.store(f"k{number}", BIG)
    started = harness.ask(PutStart(objects=[NewObject(key="more", size_bytes=BIG)]))
    assert isinstance(started, PutStarted)
    assert started.retry_after_s is not None


def test_tenants_own_what_a_tier_brings_back(harness: TieredHarness) -> None:
    harness.store("k", BIG, tenant="acme")
    evict_all(harness)
    harness.answer_all()
    assert (usage(harness, "acme").num_objects, usage(harness, "acme").used_bytes) == (1, 0)
    harness.restart()
    harness.answer_all()
    assert harness.commands(AskTierReport)
    assert usage(harness, "acme").num_objects == 1
    assert found(get(harness, "k")) == [False], "it is not the default tenant's"
    assert found(get(harness, "k", tenant="acme")) == [True]
    assert usage(harness, "acme").used_bytes > BIG
    assert harness.pool.check() == []


def test_all_of_a_tenant_removed_while_the_node_was_away_does_not_come_back(harness: TieredHarness) -> None:
    harness.store("k", BIG, tenant="acme")
    harness.store("k", BIG)
    evict_all(harness)
    harness.answer_all()
    harness.leave("a")
    harness.ask(RemoveAll(force=True, tenant="acme"))
    harness.join("a")
    harness.answer_all()
    assert usage(harness, "acme").num_objects == 0
    assert harness.exists("k") == [True]


def test_a_probe_waits_for_nothing(harness: TieredHarness) -> None:
    demote(harness, "k")
    token = next(harness.tokens)
    harness.feed(p.Asked(token, Get(keys=["k"], lease=False)))
    assert found(harness.answers[token]) == [False]
    assert not harness.commands(PromoteObjects)


def test_nobody_waits_for_what_a_draining_node_would_have_to_take_in(harness: TieredHarness) -> None:
    demote(harness, "k")
    harness.ask(DrainNode(name="a"))
    assert found(harness.get("k")) == [False]
    assert not harness.commands(PromoteObjects)
