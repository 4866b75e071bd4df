"""What may not go is held, and goes as soon as it may."""

from __future__ import annotations

import math

import pytest

from mooncake_core.store.eviction_order import EvictionOrder
from mooncake_core.store.evictions import LRU


class Ordered:
    """An order over LRU, what holds its objects, and how often it was asked about them."""

    def __init__(self, *keys: str) -> None:
        self.order = EvictionOrder(LRU())
        self.until: dict[str, float] = {}
        self.asked: list[str] = []
        for key in keys:
            self.order.added(key, size_bytes=1, position=0)

    def held_until(self, key: str) -> float:
        self.asked.append(key)
        return self.until.get(key, 0.0)

    def victims(self, now: float) -> str:
        """All that goes now."""
        gone = ""
        while (key := self.order.next_victim(self.held_until, now)) is not None:
            gone += key
            self.order.removed(key)
        return gone


@pytest.fixture
def ordered() -> Ordered:
    return Ordered(*"abcdef")


def test_what_is_under_lease_goes_first_when_the_lease_has_ended(ordered: Ordered) -> None:
    ordered.until = {"a": 5.0, "c": 7.0}
    assert ordered.order.next_victim(ordered.held_until, 1.0) == "b"
    ordered.order.removed("b")
    assert ordered.order.next_victim(ordered.held_until, 5.0) == "a"
    ordered.order.removed("a")
    assert ordered.victims(5.0) == "def"
    assert ordered.victims(6.9) == ""
    assert ordered.victims(7.0) == "c"


def test_a_lease_that_was_renewed_counts(ordered: Ordered) -> None:
    ordered.until = {"a": 5.0}
    assert ordered.victims(1.0) == "bcdef"
    ordered.until["a"] = 9.0
    assert ordered.victims(5.0) == ""
    assert ordered.victims(9.0) == "a"


def test_what_is_held_without_end_goes_when_it_is_released(ordered: Ordered) -> None:
    ordered.until = {"a": math.inf, "b": math.inf}
    assert ordered.order.next_victim(ordered.held_until, 1.0) == "c"
    ordered.order.removed("c")
    ordered.order.released("a")
    assert ordered.victims(2.0) == "def"  # released too early: it is still held
    ordered.until.clear()
    assert ordered.victims(2.0) == ""
    ordered.order.released("a")
    ordered.order.released("b")
    assert ordered.victims(2.0) == "ba"


def test_a_release_that_was_missed_is_found(ordered: Ordered) -> None:
    ordered.until = {"a": math.inf, "b": math.inf, "c": 5.0}
    assert ordered.victims(1.0) == "def"
    assert ordered.order.forgotten(ordered.held_until) == []
    ordered.until["a"] = 5.0
    assert ordered.order.forgotten(ordered.held_until) == ["a"]
    ordered.order.released("a")
    assert ordered.order.forgotten(ordered.held_until) == []


def test_releasing_what_is_not_held_changes_nothing(ordered: Ordered) -> None:
    ordered.order.released("d")
    assert ordered.victims(1.0) == "abcdef"


def test_what_is_read_while_it_is_held_or_due_is_ranked_anew(ordered: Ordered) -> None:
    ordered.until = {"a": math.inf, "b": math.inf, "c": 3.0}
    assert ordered.order.next_victim(ordered.held_until, 1.0) == "d"
    ordered.order.removed("d")
    ordered.until.clear()
    ordered.order.released("b")
    for key in "bca":
        ordered.order.touched(key)
    assert ordered.victims(3.0) == "efbca"


@pytest.mark.parametrize("state", ["ranked", "held", "leased", "due"])
def test_what_is_gone_does_not_come_back(ordered: Ordered, state: str) -> None:
    if state != "ranked":
        ordered.until = {"a": 3.0 if state == "leased" else math.inf}
        assert ordered.order.next_victim(ordered.held_until, 1.0) == "b"
        ordered.order.removed("b")
    if state == "due":
        ordered.order.released("a")
    ordered.order.removed("a")
    ordered.until.clear()
    ordered.order.released("a")
    assert "a" not in ordered.victims(9.0)


def test_what_is_held_is_not_looked_at_again() -> None:
    keys = [f"k{number}" for number in range(1000)]
    ordered = Ordered(*keys, "last")
    ordered.until = dict.fromkeys(keys, math.inf)
    assert ordered.victims(1.0) == "last"
    assert len(ordered.asked) == 1001
    ordered.order.added("new", size_bytes=1, position=0)
    assert ordered.victims(1.0) == "new"
    assert len(ordered.asked) == 1002
