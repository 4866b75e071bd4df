"""The prefix index against a naive one, and its tiers by hand-worked cases."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.kvcache.prefix_index import LowerBlocks, LowerRun, PrefixIndex
from mooncake_core.wire.messages.tiering import DRAM, LOWER

KEYS = [bytes([number]) for number in range(8)]
HOLDERS = ["a", "b", "c"]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from([DRAM, LOWER, "removed", "drop"]), st.sampled_from(HOLDERS), st.lists(st.sampled_from(KEYS))
    ),
    max_size=30,
)


@given(OPERATIONS, st.lists(st.sampled_from(KEYS), max_size=8, unique=True))
def test_it_answers_like_dictionaries(operations: list[tuple[str, str, list[bytes]]], query: list[bytes]) -> None:
    index = PrefixIndex()
    held: dict[str, dict[bytes, str]] = {holder: {} for holder in HOLDERS}
    for kind, holder, keys in operations:
        if kind == "drop":
            index.drop(holder)
            held[holder].clear()
        elif kind == "removed":
            index.removed(holder, keys)
            held[holder] = {key: tier for key, tier in held[holder].items() if key not in keys}
        else:
            index.stored(holder, keys, DRAM if kind == DRAM else LOWER)
            held[holder].update(dict.fromkeys(keys, kind))
    expected = {holder: _prefix(query, set(keys)) for holder, keys in held.items()}
    match = index.match(query)
    found = {holder: length for length, mask in match.ends for holder in index.names(mask)}
    assert found == {holder: length for holder, length in expected.items() if length}
    assert match.longest == max(expected.values())
    assert match.reach == _prefix(query, set().union(*held.values()))
    rows = [*HOLDERS, "nobody", *HOLDERS[:1]]
    wanted = [expected.get(holder, 0) for holder in rows]
    assert index.lengths(match, index.column(rows)).column().tolist() == wanted
    with mock.patch("mooncake_core.kvcache.prefix_index.FEW", -1):  # as where many have a prefix
        assert index.lengths(match, index.column(rows)).column().tolist() == wanted
    for key in KEYS:
        assert sorted(index.names(index.holders(key))) == [holder for holder in HOLDERS if key in held[holder]]
    assert len(index) == len(set().union(*held.values()))
    _assert_lower(index, held, query[: match.reach])


def _assert_lower(index: PrefixIndex, held: dict[str, dict[bytes, str]], query: list[bytes]) -> None:
    match = index.match(query)
    found = [(set[str](), False)] * len(query)
    for run in match.lower:
        assert run.mask
        for position in range(run.start, run.end):
            assert found[position] == (set(), False), "runs overlap"
            found[position] = (set(index.names(run.mask)), run.only_there)
    for key, (holders, only_there) in zip(query, found, strict=True):
        having = {holder: keys[key] for holder, keys in held.items() if key in keys}
        assert holders == {holder for holder, tier in having.items() if tier == LOWER}
        assert only_there == (DRAM not in having.values())
    if match.ends:
        first = index.names(match.ends[-1][1])[0]
        assert match.longest_lower == [held[first][key] for key in query[: match.longest]].count(LOWER)


def _prefix(query: list[bytes], keys: set[bytes]) -> int:
    for length, key in enumerate(query):
        if key not in keys:
            return length
    return len(query)


def test_a_match_says_which_runs_have_to_be_loaded() -> None:
    index = PrefixIndex()
    index.stored("a", KEYS[:2])
    index.stored("a", KEYS[2:6], LOWER)  # the tail of a chain goes first
    index.stored("b", KEYS[:4])
    a, b = 1 << index.number("a"), 1 << index.number("b")
    match = index.match(KEYS)
    assert match.ends == [(4, b), (6, a)]
    assert match.lower == [LowerRun(2, 4, a, False), LowerRun(4, 6, a, True)]
    assert match.longest_lower == 4
    column = index.column(["b", "nobody", "a"])
    assert index.lower(match, column) == [LowerBlocks(2, 4, [2], False), LowerBlocks(4, 6, [2], True)]
    others = index.column(["b"])  # what is nowhere else concerns also who would fetch it
    assert index.lower(match, others) == [LowerBlocks(4, 6, (), True)]


@pytest.mark.parametrize("way", ["read", "removed", "dropped"])
def test_what_leaves_a_lower_tier_is_not_remembered_there(way: str) -> None:
    index = PrefixIndex()
    index.stored("a", KEYS, LOWER)
    if way == "read":
        index.stored("a", KEYS)
    elif way == "removed":
        index.removed("a", KEYS)
    else:
        index.drop("a")
    assert index.match(KEYS).lower == ()
    assert index._lower == {}
    assert len(index) == (len(KEYS) if way == "read" else 0)
