"""How much each way to a peer is given."""

from __future__ import annotations

from collections import Counter

import pytest

from mooncake_core.transfer.shares import MEASURED_BYTES, SLOWEST, Shares
from mooncake_core.transfer.weights import Weights

LARGE = 4 << 20


def given(shares: Shares[str], nominal: dict[str, float], count: int, num_bytes: int = LARGE) -> Counter[str]:
    return Counter(shares.next(nominal, num_bytes) for _ in range(count))


@pytest.mark.parametrize("num_bytes", [1, LARGE])
def test_bytes_are_given_by_weight_whether_something_is_under_way_or_not(num_bytes: int) -> None:
    assert given(Shares(), {"a": 2.0, "b": 1.0, "c": 1.0}, 400, num_bytes) == {"a": 200, "b": 100, "c": 100}


def test_bytes_are_counted_and_not_operations() -> None:
    shares: Shares[str] = Shares()
    equal = {"a": 1.0, "b": 1.0}
    assert shares.next(equal, 10 * LARGE) == "a"
    assert given(shares, equal, 10) == {"b": 10}
    assert given(shares, equal, 10) == {"a": 5, "b": 5}


def test_what_a_way_delivers_counts_and_the_weight_multiplies_it() -> None:
    shares: Shares[str] = Shares()
    for _ in range(20):
        shares.delivered("a", 1.0, LARGE, 1.0)
        shares.delivered("b", 1.0, LARGE, 3.0)
    assert given(shares, {"a": 1.0, "b": 1.0}, 400) == {"a": 300, "b": 100}
    assert given(shares, {"a": 1.0, "b": 3.0}, 400) == {"a": 200, "b": 200}


def test_one_that_was_not_seen_is_taken_for_as_good_as_the_others() -> None:
    shares: Shares[str] = Shares()
    shares.delivered("a", 100.0, LARGE, 1.0)
    assert given(shares, {"a": 100.0, "b": 50.0}, 300) == {"a": 200, "b": 100}


def test_what_was_given_before_the_first_was_seen_is_not_held_against_anybody() -> None:
    shares: Shares[str] = Shares()
    equal = {"a": 1.0, "b": 1.0}
    assert given(shares, equal, 3) == {"a": 2, "b": 1}
    shares.delivered("a", 1.0, LARGE, 0.01)
    shares.delivered("b", 1.0, LARGE, 0.01)
    assert given(shares, equal, 101) == {"a": 50, "b": 51}


def test_short_ones_and_those_without_a_time_say_nothing() -> None:
    shares: Shares[str] = Shares()
    shares.delivered("a", 1.0, MEASURED_BYTES - 1, 100.0)
    shares.delivered("b", 1.0, LARGE, 0.0)
    assert shares.shares({"a": 1.0, "b": 1.0}) == {"a": 1.0, "b": 1.0}


def test_the_slowest_still_gets_something_and_one_that_failed_begins_anew() -> None:
    shares: Shares[str] = Shares()
    shares.delivered("a", 1.0, LARGE, 1.0)
    shares.delivered("b", 1.0, LARGE, 1e6)
    found = shares.shares({"a": 1.0, "b": 1.0})
    assert found["b"] == SLOWEST * found["a"]
    shares.forget("b")
    found = shares.shares({"a": 1.0, "b": 1.0})
    assert found["a"] == found["b"]


def test_one_that_comes_back_does_not_make_up_for_what_it_missed() -> None:
    shares: Shares[str] = Shares()
    given(shares, {"a": 1.0}, 100)
    assert given(shares, {"a": 1.0, "b": 1.0}, 100) == {"a": 50, "b": 50}


def test_one_that_does_not_finish_gets_no_more() -> None:
    shares: Shares[str] = Shares()
    pending = {"a": 0, "b": 0}
    for _ in range(100):
        chosen = shares.next({"a": 1.0, "b": 1.0}, LARGE, pending)
        pending[chosen] += LARGE if chosen == "b" else 0  # the other is done at once
    assert pending["b"] <= 2 * LARGE


def test_the_smallest_network_says_the_weight() -> None:
    weights = Weights({"10.0.0.0/8": 0, "10.1.0.0/16": 2, "fd00::/8": 3, "mlx5_0": 0.5})
    assert [weights.of_address(host) for host in ("10.1.2.3", "10.2.0.1", "fd00::1", "192.0.2.1", "host")] == [
        2,
        0,
        3,
        1,
        1,
    ]
    assert [weights.of_device(name) for name in ("mlx5_0", "mlx5_1")] == [0.5, 1]
    assert Weights().of_address("10.1.2.3") == 1
