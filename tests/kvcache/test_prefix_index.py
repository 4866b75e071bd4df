"""The prefix index against a naive one."""

from __future__ import annotations

from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.kvcache.prefix_index import PrefixIndex

KEYS = [bytes([number]) for number in range(8)]
HOLDERS = ["a", "b", "c"]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["stored", "removed", "drop"]), st.sampled_from(HOLDERS), st.lists(st.sampled_from(KEYS))
    ),
    max_size=30,
)


@given(OPERATIONS, st.lists(st.sampled_from(KEYS), max_size=8, unique=True))
def test_it_answers_like_sets(operations: list[tuple[str, str, list[bytes]]], query: list[bytes]) -> None:
    index = PrefixIndex()
    held: dict[str, set[bytes]] = {holder: set() for holder in HOLDERS}
    for kind, holder, keys in operations:
        if kind == "stored":
            index.stored(holder, keys)
            held[holder] |= set(keys)
        elif kind == "removed":
            index.removed(holder, keys)
            held[holder] -= set(keys)
        else:
            index.drop(holder)
            held[holder].clear()
    expected = {holder: _prefix(query, keys) for holder, keys in held.items()}
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


def _prefix(query: list[bytes], keys: set[bytes]) -> int:
    for length, key in enumerate(query):
        if key not in keys:
            return length
    return len(query)
