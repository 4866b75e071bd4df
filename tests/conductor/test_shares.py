"""Tenants under overload, by hand-worked numbers: a prompt token takes 10 ms, a decode step 10 ms per sequence."""

from __future__ import annotations

import pytest

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.admission import AdmitAll, Early, Headroom, LearnedLengths, Predictive
from mooncake_core.conductor.admission.contract import Admission
from mooncake_core.conductor.conductor import Conductor
from mooncake_core.conductor.shares import ACTIVE_S, EVERYTHING, TenantShares
from mooncake_core.config.schema import FairnessConfig
from tests.conductor.test_conductor import arrival, dispatched, make

FAIR = FairnessConfig(reserve=0.25)


def asks(conductor: Conductor, tenant: str, request_id: str, now: float = 0.0, max_tokens: int = 9) -> c.Reject | None:
    """None: it is taken."""
    (command,) = conductor.handle(arrival(request_id, tenant=tenant, max_tokens=max_tokens), now)
    if isinstance(command, c.Reject):
        return command
    conductor.handle(e.ReservationGranted(request_id), now)
    return None


def flooded(conductor: Conductor, now: float = 0.0, max_tokens: int = 9) -> tuple[int, c.Reject]:
    """How many of its requests are taken until one is not."""
    for number in range(100):
        if refused := asks(conductor, "flood", f"flood-{number}-{now}", now, max_tokens):
            return number, refused
    raise AssertionError("all were taken")


@pytest.mark.parametrize("admission", [Early, Predictive, LearnedLengths, Headroom])
def test_who_floods_the_queue_leaves_room_in_it_for_others(admission: type[Admission]) -> None:
    conductor = make(admission=admission, ttft_slo_s=8.5, prefills=1, decodes=9, fairness=FAIR)
    assert asks(conductor, "steady", "first") is None
    taken, refused = flooded(conductor)
    assert (
        taken == 5
    )  # with the first six of 1.01 s; a seventh would be behind 6.06 s, and 0.75 of the objective is 6.4 s
    assert refused.cause == "share"
    assert refused.reason.startswith("tenant flood would have 86% of the prefill work")
    assert "where its share is 50%; expected time to first token 7.07s leaves too little" in refused.reason
    assert refused.retry_after_s == pytest.approx(7.07 - 0.75 * 8.5)
    assert asks(conductor, "steady", "second") is None
    (late,) = [reject for number in range(9) if (reject := asks(conductor, "steady", f"s{number}"))][:1]
    assert late.cause == "ttft"  # what it holds is below its share, and yet the objective would be missed
    decision = conductor.decisions(1, "flood-5", 0.0)[0]
    assert (decision.outcome, decision.tenant, decision.reason) == ("rejected", "flood", refused.reason)
    assert conductor.check() == []


def test_who_is_alone_has_everything() -> None:
    conductor = make(ttft_slo_s=8.5, prefills=1, decodes=9, fairness=FAIR)
    taken, refused = flooded(conductor)
    assert (taken, refused.cause) == (8, "ttft")


def test_who_asked_long_ago_has_no_share_any_more() -> None:
    conductor = make(ttft_slo_s=8.5, prefills=1, decodes=9, fairness=FAIR)
    asks(conductor, "steady", "first")
    conductor.handle(e.RequestEnded("first"), 1.0)
    assert flooded(conductor, ACTIVE_S)[1].cause == "share"
    for number in range(6):
        conductor.handle(e.RequestEnded(f"flood-{number}-{ACTIVE_S}"), ACTIVE_S)
    taken, refused = flooded(conductor, ACTIVE_S + 1)
    assert (taken, refused.cause) == (8, "ttft")


def test_shares_are_by_weight() -> None:
    fairness = FairnessConfig(reserve=0.25, weights={"flood": 9.0})
    conductor = make(ttft_slo_s=8.5, prefills=1, decodes=9, fairness=fairness)
    asks(conductor, "steady", "first")
    taken, refused = flooded(conductor)
    assert (taken, refused.cause) == (7, "ttft")  # 7 of 8 is less than 90 %


def test_who_floods_the_decode_instances_leaves_time_between_tokens_to_others() -> None:
    conductor = make(admission=Early, tbt_slo_s=0.08, prefills=99, decodes=1, fairness=FAIR)
    for number in range(7):
        tenant = "steady" if not number else "flood"
        reject = asks(conductor, tenant, f"r{number}")
        if number == 6:
            assert reject is not None
            break
        assert reject is None
        conductor.handle(e.PrefillEnded(f"r{number}", 0, 1.01), 0.0)
    assert reject.cause == "share"
    assert "of the tokens to decode" in reject.reason
    assert "expected time between tokens 70ms leaves too little of the objective of 80ms for others" in reject.reason
    assert asks(conductor, "steady", "second") is None


def test_who_floods_the_memory_leaves_some_of_it_to_others() -> None:
    """An instance has 100 blocks of 10 tokens, a request takes 11."""
    conductor = make(admission=AdmitAll, prefills=99, fairness=FAIR)
    asks(conductor, "steady", "first")
    taken, refused = flooded(conductor)
    assert (taken, refused.cause) == (5, "share")
    assert "23 of 100 blocks of KV memory would be left to others at d0" in refused.reason
    assert asks(conductor, "steady", "second") is None
    assert asks(conductor, "steady", "third") is None


def test_an_idle_prefill_pool_is_nobodys_share() -> None:
    """Whoever happens to compute the only prompt has all the prefill work, and that counts for the time to first token alone."""
    shares = TenantShares(FAIR)
    steady, flood = arrival("s", tenant="steady"), arrival("f", tenant="flood")
    for _ in range(9):
        shares.allow(flood, 1.0, 0.0)
        shares.placed(flood, 1.0)
        shares.prefilled(flood, 1.0)
    allowance = shares.allow(steady, 1.0, 0.0)
    assert (allowance.ttft_part, allowance.tbt_part) == (0.75, 1.0)
    assert shares.allow(flood, 0.0, 0.0).tbt_part == 0.75
    for _ in range(9):
        shares.ended(flood)
    assert shares.num_requests == 0
    assert shares.allow(arrival("x", tenant="alone"), 1.0, 2 * ACTIVE_S) is EVERYTHING


def test_tenants_of_different_models_share_nothing() -> None:
    conductor = make(ttft_slo_s=8.5, prefills=1, decodes=9, fairness=FAIR)
    shares = TenantShares(FAIR)
    other = e.RequestArrived("o", "other", 101, 9, [], "steady", 1000.0)
    shares.allow(other, 9.0, 0.0)
    shares.placed(other, 9.0)
    assert shares.allow(arrival(tenant="flood"), 9.0, 0.0) is EVERYTHING
    assert dispatched(conductor, arrival(tenant="flood")).prefill == "p0"
