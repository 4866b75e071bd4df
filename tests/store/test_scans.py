"""Keys listed and removed by prefix and regular expression, without keeping others waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mooncake_core.errors import InvalidRequest
from mooncake_core.store import events as p
from mooncake_core.store import scans
from mooncake_core.store.scans import LISTING_S, MAX_LISTINGS, MAX_PATTERN_CHARACTERS
from mooncake_core.wire.messages.objects import KeyList, ListKeys, RemoveMatching
from mooncake_core.wire.messages.pool import Remove, RemoveAll, RemovedAll
from tests.store.pool_harness import Harness


@pytest.fixture
def harness() -> Harness:
    made = Harness()
    for name in ("a", "b", "c"):
        made.join(name)
    made.answer_all()
    return made


def page(harness: Harness, **fields: Any) -> KeyList:
    answer = harness.ask(ListKeys(**fields))
    assert isinstance(answer, KeyList), answer
    return answer


def pages(harness: Harness, **fields: Any) -> Iterator[list[str]]:
    found = page(harness, **fields)
    yield found.keys
    while found.cursor:
        found = page(harness, cursor=found.cursor, **fields)
        yield found.keys


def listed(harness: Harness, **fields: Any) -> list[str]:
    return sorted(key for keys in pages(harness, **fields) for key in keys)


def test_keys_are_listed_by_prefix_and_pattern(harness: Harness) -> None:
    for key in ("model/1", "model/2", "other/1", "x"):
        harness.store(key)
    harness.put("model/writing")
    assert listed(harness) == ["model/1", "model/2", "other/1", "x"]
    assert listed(harness, prefix="model/") == ["model/1", "model/2"]
    assert listed(harness, pattern="/1$") == ["model/1", "other/1"]
    assert listed(harness, prefix="model/", pattern="1") == ["model/1"]
    assert listed(harness, pattern="^1") == []


def test_a_tenants_listing_is_of_its_own_keys(harness: Harness) -> None:
    harness.store("k", tenant="acme")
    harness.store("j")
    assert listed(harness, tenant="acme") == ["k"]
    assert listed(harness, tenant="acme", pattern="^k$") == ["k"]
    assert listed(harness) == ["j"]
    assert listed(harness, pattern="acme") == []


def test_pages_name_each_key_that_stays_once_whatever_goes_and_comes(harness: Harness) -> None:
    keys = [f"k{number}" for number in range(10)]
    for key in keys:
        harness.store(key)
    found: list[str] = []
    for number, some in enumerate(pages(harness, limit=2)):
        assert len(some) <= 2
        found += some
        harness.store(f"new{number}")
        harness.ask(Remove(keys=[f"k{number}"]))
    assert len(found) == len(set(found))
    assert set(found) >= set(keys[5:])
    assert not [key for key in found if key.startswith("new")]


def test_a_page_looks_at_no_more_than_a_slice(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "SLICE", 4)
    for number in range(10):
        harness.store(f"k{number}")
    assert [len(keys) for keys in pages(harness, pattern="[4-9]")] == [0, 4, 2]


def test_a_cursor_that_names_nothing_any_more_is_refused(harness: Harness) -> None:
    for number in range(3):
        harness.store(f"k{number}")
    first = page(harness, limit=1).cursor
    assert isinstance(harness.ask(ListKeys(cursor=first + 1000)), InvalidRequest)
    harness.now += LISTING_S
    error = harness.ask(ListKeys(cursor=first))
    assert isinstance(error, InvalidRequest)
    assert "begin again with 0" in error.message
    oldest = page(harness, limit=1).cursor
    newer = [page(harness, limit=1).cursor for _ in range(MAX_LISTINGS)]
    assert isinstance(harness.ask(ListKeys(cursor=oldest)), InvalidRequest)
    assert page(harness, limit=5, cursor=newer[0]).keys == ["k1", "k2"]
    assert isinstance(harness.ask(ListKeys(limit=0)), InvalidRequest)


def test_what_a_pattern_is_found_in_is_removed_unless_it_is_leased(harness: Harness) -> None:
    for key in ("a1", "a2", "b1", "b2"):
        harness.store(key)
    harness.store("a3", tenant="acme")
    harness.get("a2")
    assert harness.ask(RemoveMatching(pattern="^a")) == RemovedAll(removed=1, kept=1)
    assert harness.exists("a1", "a2", "b1", "b2") == [False, True, True, True]
    assert harness.ask(RemoveMatching(pattern="2|1$", force=True)) == RemovedAll(removed=3, kept=0)
    assert listed(harness, tenant="acme") == ["a3"]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "missing"),
        (r"(a)\1", "invalid escape sequence"),
        ("(?=a)", "invalid perl operator"),
        ("a{2000}", "invalid repetition size"),
        ("", "expected a pattern"),
        ("a" * (MAX_PATTERN_CHARACTERS + 1), "at most 4096 characters"),
    ],
)
def test_what_is_no_pattern_is_refused_with_the_reason(harness: Harness, pattern: str, reason: str) -> None:
    harness.store("aaa")
    error = harness.ask(RemoveMatching(pattern=pattern))
    assert isinstance(error, InvalidRequest)
    assert reason in error.message
    assert harness.exists("aaa") == [True]


def test_a_pattern_that_stops_others_takes_linear_time_here(harness: Harness) -> None:
    harness.store("a" * 900 + "!", 64)
    assert harness.ask(RemoveMatching(pattern="^(a|aa|a*)*(a+)+$")) == RemovedAll(removed=0, kept=0)


class Slow:
    """A pool of which a sweep looks at two objects at a time."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    def ask(self, message: Any, token: int) -> list[p.Answer]:
        return self._answers(self.harness.feed(p.Asked(token, message)))

    def tick(self) -> list[p.Answer]:
        assert self.harness.pool.next_deadline() == 0.0
        return self._answers(self.harness.feed(p.Tick()))

    def _answers(self, commands: list[p.Command]) -> list[p.Answer]:
        return [command for command in commands if isinstance(command, p.Answer)]


@pytest.fixture
def slow(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Slow:
    monkeypatch.setattr(scans, "SLICE", 2)
    for number in range(5):
        harness.store(f"k{number}")
    return Slow(harness)


def test_a_removal_goes_slice_by_slice_and_is_answered_at_its_end(slow: Slow) -> None:
    assert slow.ask(RemoveMatching(pattern="k"), 1000) == []
    assert slow.harness.exists("k0", "k1", "k2") == [False, False, True]
    slow.harness.store("k0")  # put meanwhile: it stays
    slow.harness.ask(Remove(keys=["k4"]))
    assert slow.tick() == []
    assert slow.tick() == [p.Answer(1000, RemovedAll(removed=4, kept=0))]
    assert slow.harness.exists("k0", "k1", "k2", "k3", "k4") == [True] + [False] * 4
    assert slow.harness.pool.next_deadline() != 0.0


def test_removals_go_one_after_the_other(slow: Slow) -> None:
    slow.harness.get("k1")
    assert slow.ask(RemoveAll(), 1000) == []
    assert slow.ask(RemoveAll(force=True), 1001) == []
    answers: list[p.Answer] = []
    while slow.harness.pool.next_deadline() == 0.0:
        answers += slow.tick()
    assert answers == [p.Answer(1000, RemovedAll(removed=4, kept=1)), p.Answer(1001, RemovedAll(removed=1, kept=0))]
    assert slow.harness.pool.check() == []


def test_an_upsert_during_a_removal_is_not_removed(slow: Slow) -> None:
    slow.ask(RemoveAll(), 1000)
    slow.harness.store("k4", 128, upsert=True)
    slow.tick()
    assert slow.tick() == [p.Answer(1000, RemovedAll(removed=4, kept=0))]
    assert slow.harness.exists("k4") == [True]
