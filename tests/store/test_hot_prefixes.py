"""Counters of hot prefixes are bounded, and what they say of the true counts holds."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.store.hot_prefixes import HotPrefixes


def fed(heads: str, capacity: int, half_life_reads: int = 1 << 20) -> HotPrefixes:
    hot = HotPrefixes(capacity, half_life_reads)
    for head in heads:
        hot.read(head, num_objects=2, size_bytes=10)
    return hot


@given(st.text("abcdefghij", max_size=200), st.integers(1, 6))
def test_counts_are_between_their_bounds_and_who_is_read_often_is_there(heads: str, capacity: int) -> None:
    true, found = Counter(heads), fed(heads, capacity).hottest(99)
    assert len(found) == min(capacity, len(true))
    assert [prefix.reads for prefix in found] == sorted((prefix.reads for prefix in found), reverse=True)
    for prefix in found:
        assert prefix.reads - prefix.overcount <= true[prefix.head] <= prefix.reads
    often = {head for head, reads in true.items() if reads * capacity > len(heads)}
    assert often <= {prefix.head for prefix in found}


def test_objects_and_bytes_are_those_of_the_prefix_itself() -> None:
    (prefix,) = fed("aaab", 1).hottest(9)
    assert (prefix.head, prefix.reads, prefix.overcount) == ("b", 4, 3)
    assert (prefix.num_objects, prefix.size_bytes) == (2, 10)


def test_what_was_hot_once_gives_way() -> None:
    was_hot = fed("a" * 8 + "b" * 7, 2, half_life_reads=4).hottest(1)
    assert [prefix.head for prefix in was_hot] == ["b"]
    assert fed("a" * 8 + "b" * 7, 2).hottest(1)[0].head == "a"
