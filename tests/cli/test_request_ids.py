"""Ids as people give them."""

from __future__ import annotations

import pytest

from mooncake_cli.request_ids import bare, resolve
from mooncake_core.errors import UsageError

KNOWN = ["abc1", "abc1-1", "abc1-10", "abc1.2", "abd2", "e3-1.2"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("abc1", "abc1"),
        ("abc", "abc1"),
        ("abc1-1", "abc1-1"),
        ("abc1-", "abc1"),
        ("e", "e3"),
        ("e3", "e3"),
        ("e3-1", "e3-1"),
        ("x", None),
        ("abc12", None),
    ],
)
def test_a_beginning_that_only_one_request_has_names_it(given: str, expected: str | None) -> None:
    assert resolve(given, KNOWN) == expected


def test_what_several_requests_begin_with_names_none_and_lists_them() -> None:
    with pytest.raises(UsageError, match=r"2 requests begin with ab: give more of the id of one of abc1, abd2"):
        resolve("ab", KNOWN)
    with pytest.raises(UsageError, match=r"20 requests begin with r: .* r107 and 12 more"):
        resolve("r", [f"r{number}" for number in range(100, 120)])


@pytest.mark.parametrize("given", ["3f2a", "cmpl-3f2a", "chatcmpl-3f2a"])
def test_an_id_may_be_copied_from_the_body_of_an_answer(given: str) -> None:
    assert bare(given) == "3f2a"
