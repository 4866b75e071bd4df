"""What each eviction policy keeps, and what it gives up."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from mooncake_core.store.eviction import Eviction
from mooncake_core.store.evictions import LFU, LRU, S3FIFO, LengthAware, Sieve
from mooncake_core.store.evictions.ranks import Ranks
from mooncake_core.testing.eviction_contract import EvictionContract, add, all_named

ALL = [LRU, LFU, LengthAware, S3FIFO, Sieve]


class TestLRU(EvictionContract):
    policy = LRU


class TestLFU(EvictionContract):
    policy = LFU


class TestLengthAware(EvictionContract):
    policy = LengthAware


class TestS3FIFO(EvictionContract):
    policy = S3FIFO


class TestSieve(EvictionContract):
    policy = Sieve


class Cache:
    """Room for some objects of equal size."""

    def __init__(self, policy: Eviction, capacity: int) -> None:
        self.policy = policy
        self.capacity = capacity
        self.keys: set[str] = set()

    def read(self, key: str) -> bool:
        """Whether it was there. It is now."""
        if key in self.keys:
            self.policy.touched(key)
            return True
        if len(self.keys) == self.capacity:
            gone = self.policy.name_next()
            assert gone is not None
            self.policy.removed(gone)
            self.keys.remove(gone)
        self.policy.added(key, size_bytes=1, position=0)
        self.keys.add(key)
        return False

    def hits(self, keys: Iterable[str]) -> int:
        return sum([self.read(key) for key in keys])


@pytest.mark.parametrize("policy", ALL)
def test_what_is_read_goes_last(policy: type[Eviction]) -> None:
    made = policy()
    add(made, *"abcdefghij")
    for _ in range(3):
        made.touched("d")
    assert list(all_named(made))[-1] == "d"


@pytest.mark.parametrize("policy", ALL)
def test_of_what_was_never_read_the_oldest_goes_first(policy: type[Eviction]) -> None:
    made = policy()
    for key in "abcdefghij":
        made.added(key, size_bytes=1, position=0)
    assert "".join(all_named(made)) == "abcdefghij"


HOT = [f"hot{number}" for number in range(50)]


def kept_after_a_scan(policy: type[Eviction]) -> int:
    """How much of what is read again and again is there after as much again came by once."""
    cache = Cache(policy(), 100)
    cache.hits(HOT * 5)
    cache.hits(f"once{number}" for number in range(1000))
    return len(cache.keys.intersection(HOT))


@pytest.mark.parametrize("policy", [S3FIFO, Sieve, LFU, LengthAware])
def test_a_scan_does_not_displace_what_is_read_often(policy: type[Eviction]) -> None:
    assert kept_after_a_scan(policy) == len(HOT)


def test_a_scan_displaces_all_that_was_not_read_lately() -> None:
    assert kept_after_a_scan(LRU) == 0


@pytest.mark.parametrize("policy", [S3FIFO, Sieve])
def test_scan_resistance_is_worth_hits_where_few_objects_are_popular(policy: type[Eviction]) -> None:
    rng = random.Random(1)
    weights = [1 / (rank + 1) for rank in range(2000)]
    requests = [str(number) for number in rng.choices(range(2000), weights, k=20_000)]
    assert Cache(policy(), 100).hits(requests) > 1.1 * Cache(LRU(), 100).hits(requests)


def test_lru_forgets_how_often_and_lfu_does_not() -> None:
    for policy, last in ((LRU, "b"), (LFU, "a")):
        made = policy()
        add(made, "a", "b", "c")
        for key in "aab":
            made.touched(key)
        assert list(all_named(made)) == ["c", *("ab" if last == "b" else "ba")]


def test_lfu_takes_the_least_recently_used_of_what_is_read_as_often() -> None:
    made = LFU()
    add(made, "a", "b", "c")
    for key in "cab":
        made.touched(key)
    assert list(all_named(made)) == ["c", "a", "b"]


def test_lfu_remembers_the_reads_of_what_it_named() -> None:
    made = LFU()
    add(made, "a", "b")
    for key in "aaab":
        made.touched(key)
    assert list(all_named(made)) == ["b", "a"]
    for key in "aab":
        made.touched(key)
    assert list(all_named(made)) == ["b", "a"]


def test_length_aware_takes_late_blocks_first_of_what_is_read_as_often() -> None:
    made = LengthAware()
    add(made, "a0", "a1", "a2")
    add(made, "b0", "b1")
    assert list(all_named(made)) == ["a2", "a1", "b1", "a0", "b0"]


def test_length_aware_keeps_a_late_block_that_is_read_more_often() -> None:
    made = LengthAware()
    add(made, "a0", "a1", "a2")
    add(made, "b0", "b1")
    made.touched("a2")
    assert list(all_named(made)) == ["a1", "b1", "a0", "b0", "a2"]


def test_s3_fifo_takes_what_comes_back_soon_for_proven() -> None:
    cache = Cache(S3FIFO(), 20)
    cache.hits(f"k{number}" for number in range(20))
    cache.read("more")
    assert "k0" not in cache.keys
    cache.read("k0")
    cache.hits(f"once{number}" for number in range(100))
    assert "k0" in cache.keys
    assert "more" not in cache.keys


def test_s3_fifo_does_not_take_a_single_read_for_a_proof() -> None:
    made = S3FIFO()
    add(made, "a", "b", "c")
    made.touched("a")
    for _ in range(2):
        made.touched("b")
    assert list(all_named(made)) == ["a", "c", "b"]


def test_s3_fifo_remembers_only_what_was_evicted_and_no_more_keys_than_it_has_objects() -> None:
    policy = S3FIFO()
    cache = Cache(policy, 20)
    cache.hits(f"k{number}" for number in range(500))
    assert 0 < len(policy._ghosts) <= 20
    ghosts = set(policy._ghosts)
    policy.removed("k499")  # by its user
    assert set(policy._ghosts) == ghosts


def test_the_hand_of_sieve_goes_on_from_where_it_was() -> None:
    made = Sieve()
    add(made, *"abcdef")
    for key in "ad":
        made.touched(key)
    assert made.name_next() == "b"  # a is spared
    made.removed("b")
    made.touched("a")
    add(made, "g")
    assert "".join(all_named(made)) == "cefgda"  # the second time round, a is spared again


def hits_of_sieve_in_a_list(requests: list[str], capacity: int) -> int:
    """The paper's algorithm as it is told: a list, the oldest first, and an index into it."""
    queue: list[str] = []
    read: dict[str, bool] = {}
    hand = hits = 0
    for key in requests:
        if key in read:
            hits += 1
            read[key] = True
            continue
        if len(queue) == capacity:
            while read[queue[hand := hand % capacity]]:
                read[queue[hand]] = False
                hand += 1
            del read[queue.pop(hand)]
        queue.append(key)
        read[key] = False
    return hits


@pytest.mark.parametrize("capacity", [1, 7, 50, 300])
def test_sieve_does_what_the_paper_says(capacity: int) -> None:
    rng = random.Random(capacity)
    weights = [1 / (rank + 1) for rank in range(1000)]
    requests = [str(number) for number in rng.choices(range(1000), weights, k=5000)]
    assert Cache(Sieve(), capacity).hits(requests) == hits_of_sieve_in_a_list(requests, capacity)


def test_ranks_that_nobody_has_do_not_pile_up() -> None:
    ranks: Ranks[int] = Ranks()
    for rank in range(10_000):
        ranks.add("hot", rank)
        ranks.discard("hot", rank)
    ranks.add("a", 3)
    ranks.add("b", 1)
    assert len(ranks._heap) < 200
    assert [ranks.pop(), ranks.pop(), ranks.pop()] == ["b", "a", None]
