"""What the store benchmark plans: which objects each call is about."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.bench.store_plan import (
    EXIST_BATCH,
    FEWEST_CALLS,
    MOST_BATCHES,
    MOST_CALLS,
    StoreCase,
    StoreLoad,
    calls,
    num_objects,
    operations_of,
    parse_case,
    put_bytes,
)

CASE = StoreCase(4096, 3)


def load(**changed: Any) -> StoreLoad:
    return StoreLoad(**{"cases": [CASE], "case_bytes": 40 * CASE.call_bytes, **changed})


def numbers(planned: list[list[tuple[str, list[int]]]], kind: str) -> list[int]:
    return [number for worker in planned for called, some in worker if called == kind for number in some]


@pytest.mark.parametrize(
    ("text", "case", "name"),
    [("4KiB", (4096, 1), "4KiB"), ("64KiBx64", (65536, 64), "64KiBx64"), (" 1000x2 ", (1000, 2), "1000Bx2")],
)
def test_a_case_is_a_size_and_how_many_per_call(text: str, case: tuple[int, int], name: str) -> None:
    parsed = parse_case(text)
    assert (parsed.object_bytes, parsed.batch) == case
    assert parsed.name == name


@pytest.mark.parametrize("text", ["", "x4", "4KiBx", "4KiBx0", "0", "4KiBxtwo", "4KiBx-1"])
def test_what_is_no_case_is_said_so(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size like 1MiB, or size and objects per call like 64KiBx64"):
        parse_case(text)


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([StoreCase(4096), CASE, StoreCase(1 << 20, 40)]))
def test_each_object_is_put_once_and_read_once(processes: int, threads: int, case: StoreCase) -> None:
    wanted = load(processes=processes, threads=threads, cases=[case])
    put, got = calls(wanted, case, "put"), calls(wanted, case, "get")
    assert sorted(numbers(put, "put")) == sorted(numbers(got, "get")) == list(range(num_objects(wanted, case)))
    assert len({len(worker) for worker in put}) == 1
    assert {len(some) for worker in put for _, some in worker} == {case.batch}


def test_the_number_of_calls_is_bounded_on_both_sides() -> None:
    assert num_objects(load(case_bytes=1 << 40), StoreCase(4096)) == MOST_CALLS
    assert num_objects(load(case_bytes=1 << 40), CASE) == MOST_BATCHES * CASE.batch
    assert num_objects(load(case_bytes=1), CASE) == FEWEST_CALLS * CASE.batch
    assert put_bytes(load()) == 40 * CASE.call_bytes
    assert put_bytes(load(operations=["mixed"])) == 2 * put_bytes(load())


def test_a_share_of_reads_asks_for_what_nobody_put_and_for_nothing_twice() -> None:
    planned = numbers(calls(load(hits=0.7, processes=2, threads=2, case_bytes=1 << 40), CASE, "get"), "get")
    absent = [number for number in planned if number < 0]
    assert len(set(absent)) == len(absent)
    assert len(absent) / len(planned) == pytest.approx(0.3, abs=0.1)


def test_keys_that_are_looked_up_are_there_in_turn() -> None:
    for batch in itertools.chain(*calls(load(), CASE, "exist")):
        assert [number >= 0 for number in batch[1]] == [False, True] * (EXIST_BATCH // 2)
    all_there = numbers(calls(load(hits=1.0, threads=2), CASE, "exist"), "exist")
    assert min(all_there) >= 0
    assert max(all_there) < num_objects(load(threads=2), CASE)


def test_reuse_follows_zipf_and_names_no_object_twice_in_a_call() -> None:
    wanted = load(zipf=1.2, processes=2, case_bytes=1 << 40)
    planned = calls(wanted, CASE, "get")
    counts = Counter(numbers(planned, "get"))
    (_, first), (_, second) = counts.most_common(2)
    assert first > second > 2 * len(counts) / num_objects(wanted, CASE)
    assert all(len(set(some)) == CASE.batch for worker in planned for _, some in worker)
    hot = [Counter(number for _, some in worker for number in some).most_common(1)[0][0] for worker in planned]
    assert hot[0] == hot[1]
    assert calls(wanted, CASE, "get") == planned
    assert calls(load(zipf=1.2, processes=2, case_bytes=1 << 40, seed=1), CASE, "get") != planned


def test_a_mix_reads_what_is_there_and_puts_what_is_new() -> None:
    wanted = load(operations=["mixed"], reads=0.6, threads=2)
    planned = calls(wanted, CASE, "mixed")
    kinds = Counter(kind for worker in planned for kind, _ in worker)
    assert kinds["get"] / kinds.total() == pytest.approx(0.6, abs=0.2)
    total, put = num_objects(wanted, CASE), numbers(planned, "put")
    assert total <= min(put)
    assert max(put) < 2 * total
    assert len(set(put)) == len(put)
    assert min(numbers(planned, "get")) >= 0
    assert max(numbers(planned, "get")) < total


def test_what_is_read_is_put_first_and_keys_are_looked_up_once() -> None:
    wanted = load(cases=[CASE, StoreCase(1)], operations=["exist", "mixed", "get"])
    assert operations_of(wanted, CASE) == ["put", "get", "mixed", "exist"]
    assert operations_of(wanted, StoreCase(1)) == ["put", "get", "mixed"]
