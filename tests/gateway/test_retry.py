"""Retry: what may go on elsewhere does, with a limit to everything."""

from __future__ import annotations

import pytest

from mooncake_core.errors import (
    EngineError,
    InvalidRequest,
    MooncakeError,
    PeerUnreachable,
    RequestRejected,
    ServiceUnavailable,
    TransferError,
)
from mooncake_core.gateway.retry import LONGEST_DELAY_S, MOST_FAILURES, Retry


def retry(deadline: float = 1000.0) -> Retry:
    return Retry(deadline=deadline, patience_s=10)


@pytest.mark.parametrize("error", [InvalidRequest("no"), RequestRejected("busy")])
def test_a_request_that_cannot_be_or_is_refused_is_not_tried_again(error: MooncakeError) -> None:
    assert retry().after_refusal(error, 0) is None


def test_a_new_request_waits_for_its_patience_with_growing_pauses() -> None:
    now, pauses = 0.0, []
    found = retry()
    while (pause := found.after_refusal(ServiceUnavailable("nobody"), now)) is not None:
        pauses.append(pause)
        now += pause
    assert 10 <= now <= 10 + LONGEST_DELAY_S
    assert pauses == sorted(pauses)
    assert max(pauses) == LONGEST_DELAY_S


def test_a_running_request_waits_until_its_deadline_even_where_new_ones_are_refused() -> None:
    found, now = retry(deadline=100), 0.0
    found.placed()
    found.advanced()
    while (pause := found.after_refusal(RequestRejected("busy"), now)) is not None:
        now += pause
    assert 100 - LONGEST_DELAY_S <= now <= 100


def test_instances_may_fail_it_so_often_and_engines_twice() -> None:
    found = retry()
    pauses = [found.after_failure(TransferError("broken"), 0) for _ in range(MOST_FAILURES)]
    assert None not in pauses[:-1]
    assert pauses[-1] is None
    found = retry()
    assert found.after_failure(EngineError("broken"), 0) is not None
    assert found.after_failure(EngineError("broken"), 0) is None


def test_an_instance_that_died_before_the_first_token_is_waited_for_as_if_it_were_not_there() -> None:
    found, now = retry(), 0.0
    while (pause := found.after_failure(PeerUnreachable("gone"), now)) is not None:
        now += pause
    assert 10 <= now <= 10 + LONGEST_DELAY_S


def test_a_request_that_was_admitted_once_is_not_refused_when_its_instance_dies() -> None:
    found = retry()
    found.placed()
    assert found.after_failure(PeerUnreachable("gone"), 0) is not None
    assert found.after_refusal(RequestRejected("full"), 0.1) is not None


def test_tokens_make_the_pauses_short_again() -> None:
    found = retry()
    first = found.after_refusal(ServiceUnavailable("nobody"), 0)
    for _ in range(5):
        found.after_refusal(ServiceUnavailable("nobody"), 0)
    found.advanced()
    assert found.after_failure(PeerUnreachable("gone"), 0) == first
