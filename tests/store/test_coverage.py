"""Which bytes of an object have been written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.store.coverage import Coverage

SIZE = 12
RANGES = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(RANGES, max_size=12))
def test_it_agrees_with_a_set_of_bytes(ranges: list[tuple[int, int]]) -> None:
    coverage, written, in_order, end = Coverage(), set[int](), True, 0
    for start, stop in ranges:
        coverage.add(start, stop)
        in_order = in_order and start == end
        end = stop
        written |= set(range(start, stop))
        assert coverage.reached == next(byte for byte in range(SIZE + 1) if byte not in written)
        assert coverage.in_order == in_order
