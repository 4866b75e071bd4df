"""What is pinned: never evicted, or last."""

from __future__ import annotations

import math

import pytest

from mooncake_core.errors import InvalidRequest, NoSpace, ObjectNotFound
from mooncake_core.store import events as p
from mooncake_core.wire.messages.objects import Pin
from mooncake_core.wire.messages.pool import NewObject, PutStart, PutStarted, Remove, RemoveAll, Removed, RemovedAll
from tests.store.pool_harness import Harness

BLOCK = 64 * 4
"""Ten of these, with their headers, fill most of a node."""


def fill(harness: Harness, count: int = 8, **options: object) -> list[str]:
    keys = [f"x{number}" for number in range(count)]
    for key in keys:
        harness.store(key, BLOCK, **options)
    harness.now += 60
    harness.feed(p.Tick())
    return keys


def press(harness: Harness, blocks: int) -> str:
    """Wants so much space, and gives it back; says how that ended. What was evicted for it is free after that."""
    grant = harness.put("large", 64 * blocks)
    if grant.placements:
        harness.end(grant, revoke=True)
    harness.answer_all()
    return grant.refusal


def test_a_hard_pinned_object_is_never_evicted(harness: Harness) -> None:
    harness.store("pinned", BLOCK, hard_pin=True)
    keys = fill(harness)
    for _ in range(3):
        press(harness, 50)
    assert harness.exists("pinned", *keys) == [True] + [False] * 8
    assert press(harness, 50) == ""


def test_a_put_that_cannot_get_space_because_of_hard_pins_is_refused(harness: Harness) -> None:
    keys = fill(harness, hard_pin=True)
    for _ in range(3):
        assert press(harness, 40) == NoSpace.code
    assert harness.exists(*keys) == [True] * 8


def test_a_pin_is_taken_off_and_put_on_while_an_object_is_there(harness: Harness) -> None:
    keys = fill(harness, hard_pin=True)
    assert harness.pin(keys[3], "missing") == ["", ObjectNotFound.code]
    press(harness, 40)
    assert harness.exists(*keys) == [key != keys[3] for key in keys]
    assert harness.pin(*keys[:2]) == ["", ""]
    assert harness.pin(keys[1], hard=True) == [""]
    press(harness, 40)
    assert harness.exists(*keys[:4]) == [False, True, True, False]
    assert harness.pool.check() == []


def test_softly_pinned_objects_go_where_nothing_else_can(harness: Harness) -> None:
    harness.store("soft", BLOCK, soft_pin_s=1000.0)
    keys = fill(harness)
    press(harness, 20)  # the others give so much
    assert harness.exists("soft") == [True]
    assert not all(harness.exists(*keys))
    press(harness, 58)
    assert harness.exists("soft", *keys) == [False] * 9


def test_of_softly_pinned_objects_only_as_many_go_as_are_needed_the_first_to_end_first(harness: Harness) -> None:
    for number in range(9):
        harness.store(f"s{number}", BLOCK, soft_pin_s=1000.0 - number)
    harness.now += 60
    assert press(harness, 20) == NoSpace.code
    there = harness.exists(*[f"s{number}" for number in range(9)])
    assert there == [True] * 4 + [False] * 5
    assert press(harness, 20) == ""


def test_what_is_softly_pinned_and_leased_does_not_go(harness: Harness) -> None:
    harness.store("soft", BLOCK, soft_pin_s=1000.0)
    harness.get("soft")
    press(harness, 58)
    assert harness.exists("soft") == [True]


def test_a_soft_pin_ends(harness: Harness) -> None:
    harness.store("ends", 3 * BLOCK, soft_pin_s=100.0)
    harness.store("stays", BLOCK, soft_pin_s=1000.0)
    keys = fill(harness, 6)  # takes 60 s
    harness.pin("ends", soft_s=70.0)  # 30 s longer
    harness.now += 50
    harness.feed(p.Tick())
    described = harness.describe("ends")
    assert described is not None
    assert described.soft_pin_s == pytest.approx(20.0)
    harness.now += 20
    harness.feed(p.Tick())
    harness.get(*keys)
    assert press(harness, 12) == NoSpace.code
    assert harness.exists("ends", "stays", *keys) == [False] + [True] * 7


def test_what_was_softly_pinned_counts_as_any_other_object(harness: Harness) -> None:
    for number in range(9):
        harness.store(f"s{number}", BLOCK, soft_pin_s=100.0)
    harness.now += 200
    harness.feed(p.Tick())
    harness.store("above the high watermark", BLOCK)
    assert sum(harness.exists(*[f"s{number}" for number in range(9)])) == 5  # down to the low one


def test_a_get_of_what_is_pinned_does_not_rank_it(harness: Harness) -> None:
    harness.store("pinned", BLOCK, hard_pin=True)
    harness.get("pinned")
    harness.now += 60
    press(harness, 58)
    assert harness.exists("pinned") == [True]


def test_pins_do_not_keep_an_object_from_being_removed(harness: Harness) -> None:
    for key in ("k", "j"):
        harness.store(key, hard_pin=True)
    assert harness.ask(Remove(keys=["k"])) == Removed(refusals=[""])
    assert harness.ask(RemoveAll()) == RemovedAll(removed=1, kept=0)
    assert harness.pool.check() == []


@pytest.mark.parametrize("soft_s", [-1.0, math.inf, math.nan])
def test_a_soft_pin_that_makes_no_sense_is_refused(harness: Harness, soft_s: float) -> None:
    harness.store("k")
    objects = [NewObject(key="j", size_bytes=1)]
    for message in (Pin(keys=["k"], soft_s=soft_s), PutStart(objects=objects, soft_pin_s=soft_s)):
        error = harness.ask(message)
        assert isinstance(error, InvalidRequest)
        assert "expected a soft pin of 0 s or more that ends" in error.message
    assert harness.pool.report(0).num_writing == 0


def test_a_refused_put_is_told_when_space_that_leaves_may_be_free(harness: Harness) -> None:
    def hint(blocks: int) -> float | None:
        started = harness.ask(PutStart(objects=[NewObject(key="more", size_bytes=64 * blocks)]))
        assert isinstance(started, PutStarted)
        assert started.grants[0].refusal == NoSpace.code
        return started.retry_after_s

    keys = fill(harness, 10, hard_pin=True)
    assert hint(20) is None
    harness.get(keys[0])
    harness.ask(Remove(keys=[keys[0]], force=True))
    harness.answer_all()
    harness.now += 2
    assert hint(20) == pytest.approx(4.0)  # of a lease of 5 s and a margin of 1 s
    harness.pin(keys[1])
    assert hint(20) == pytest.approx(0.05)  # evicted now: the node is being asked to clear it
