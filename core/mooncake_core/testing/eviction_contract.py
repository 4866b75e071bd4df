"""The contract of an eviction policy as tests. A plugin's test file subclasses EvictionContract:

class TestMine(EvictionContract):
    policy = MyEviction
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

import pytest

from mooncake_core.store.eviction import Eviction

KEYS = [f"k{number}" for number in range(40)]


def add(policy: Eviction, *keys: str) -> None:
    """A chain of objects."""
    for position, key in enumerate(keys):
        policy.added(key, size_bytes=64, position=position)


def all_named(policy: Eviction) -> Iterator[str]:
    """What a policy names until it names nothing more."""
    while (key := policy.name_next()) is not None:
        yield key


class EvictionContract:
    """Subclass, set `policy`, inherit the tests."""

    policy: ClassVar[type[Eviction]]

    @pytest.fixture
    def made(self) -> Eviction:
        return self.policy()

    def test_nothing_is_named_where_nothing_is(self, made: Eviction) -> None:
        assert made.name_next() is None

    def test_each_object_is_named_once(self, made: Eviction) -> None:
        add(made, *KEYS)
        assert sorted(all_named(made)) == sorted(KEYS)
        assert made.name_next() is None

    def test_what_was_read_is_named_too(self, made: Eviction) -> None:
        add(made, *KEYS)
        for key in KEYS * 5:
            made.touched(key)
        assert sorted(all_named(made)) == sorted(KEYS)

    def test_what_is_gone_is_not_named(self, made: Eviction) -> None:
        add(made, *KEYS)
        for key in KEYS[:5]:
            made.touched(key)
        for key in KEYS[::2]:
            made.removed(key)
        assert sorted(all_named(made)) == sorted(KEYS[1::2])

    def test_what_was_named_is_named_again_only_when_it_was_read(self, made: Eviction) -> None:
        add(made, *KEYS)
        named = list(all_named(made))
        for key in named[:3]:
            made.touched(key)
            made.touched(key)
        assert sorted(all_named(made)) == sorted(named[:3])

    def test_what_comes_later_is_named_too(self, made: Eviction) -> None:
        add(made, *KEYS[:20])
        named = [made.name_next() for _ in range(10)]
        add(made, *KEYS[20:])
        assert sorted([*filter(None, named), *all_named(made)]) == sorted(KEYS)

    @pytest.mark.parametrize("evicted", [True, False])
    def test_what_went_may_come_again(self, made: Eviction, evicted: bool) -> None:
        for _ in range(3):
            add(made, *KEYS)
            for _ in range(2):
                made.touched(KEYS[7])
            for key in all_named(made) if evicted else KEYS:
                made.removed(key)
            assert made.name_next() is None

    def test_policies_do_not_know_of_each_other(self, made: Eviction) -> None:
        other = self.policy()
        add(made, "a")
        add(other, "b")
        assert (made.name_next(), other.name_next()) == ("a", "b")

    @pytest.mark.parametrize("seed", range(5))
    def test_whatever_happens_it_knows_what_there_is(self, made: Eviction, seed: int) -> None:
        rng = random.Random(seed)
        there: set[str] = set()
        unnamed: set[str] = set()
        for _ in range(2000):
            key = rng.choice(KEYS)
            if key not in there:
                made.added(key, size_bytes=rng.randrange(1000), position=rng.randrange(5))
                there.add(key)
                unnamed.add(key)
            elif rng.random() < 0.6:
                made.touched(key)
                unnamed.add(key)
            elif rng.random() < 0.5:
                named = made.name_next()
                assert (named is None) == (not unnamed)
                if named is not None:
                    unnamed.remove(named)
            else:
                made.removed(key)
                there.remove(key)
                unnamed.discard(key)
        assert set(all_named(made)) == unnamed
