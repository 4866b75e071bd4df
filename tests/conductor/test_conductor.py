"""The Conductor: Algorithm 1 by hand-worked numbers, and every way a request can go."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.admission import Predictive
from mooncake_core.conductor.admission.contract import Admission, AdmissionSettings
from mooncake_core.conductor.conductor import Conductor, ConductorSettings
from mooncake_core.conductor.policies import KVCacheCentric, LeastLoaded
from mooncake_core.conductor.policies.contract import Policy, PolicySettings
from mooncake_core.conductor.shares import TenantShares
from mooncake_core.config.schema import FairnessConfig
from mooncake_core.wire.messages.membership import CostHint, InstanceLoad, InstanceOffer, ModelOffer
from mooncake_core.wire.messages.tiering import LOWER

BLOCK_TOKENS = 10
# A prompt token takes 10 ms, a fetched block 20 ms, a decode step 10 ms per sequence: easy to work out by hand.
COST = CostHint(
    prefill_base_s=0.0,
    prefill_per_token_s=0.01,
    prefill_per_token2_s=0.0,
    step_base_s=0.0,
    step_per_sequence_s=0.01,
    step_per_context_token_s=0.0,
    fetch_bytes_per_s=1000 / 0.02,
    load_bytes_per_s=1000 / 0.05,
)
KEYS = [bytes([number]) * 16 for number in range(10)]


def offer(node: str = "", *, blocks: int = 100, fingerprint: bytes = b"f", model: str = "m") -> InstanceOffer:
    described = ModelOffer(
        name=model,
        fingerprint=fingerprint,
        block_tokens=BLOCK_TOKENS,
        block_bytes=1000,
        max_context_tokens=1000,
        vocab_size=100,
    )
    return InstanceOffer(model=described, num_blocks=blocks, local_node=node, cost=COST)


def make(
    *,
    policy: type[Policy] = KVCacheCentric,
    admission: type[Admission] = Predictive,
    threshold: float = 2.0,
    prefills: int = 2,
    decodes: int = 1,
    max_decisions: int = 1000,
    replication_threshold: float | None = None,
    fairness: FairnessConfig | None = None,
    **limits: float,
) -> Conductor:
    conductor = Conductor(
        ConductorSettings(max_decisions=max_decisions, replication_threshold=replication_threshold),
        policy(PolicySettings(balancing_threshold=threshold)),
        "test",
        random.Random(0),
        admission(AdmissionSettings(**limits)),
        shares=TenantShares(fairness) if fairness else None,
    )
    for number in range(prefills):
        conductor.handle(e.InstanceJoined(f"p{number}", "prefill", offer(f"n{number}")), 0)
    for number in range(decodes):
        conductor.handle(e.InstanceJoined(f"d{number}", "decode", offer()), 0)
    return conductor


def arrival(
    request_id: str = "r",
    tokens: int = 101,
    max_tokens: int = 9,
    deadline: float = 1000,
    priority: int = 0,
    tenant: str = "",
) -> e.RequestArrived:
    keys = KEYS[: (tokens - 1) // BLOCK_TOKENS]
    return e.RequestArrived(request_id, "m", tokens, max_tokens, keys, tenant, deadline, priority=priority)


def dispatched(conductor: Conductor, event: e.RequestArrived, now: float = 0) -> c.Dispatch:
    (reserve,) = conductor.handle(event, now)
    assert isinstance(reserve, c.ReserveDecode), reserve
    (dispatch,) = conductor.handle(e.ReservationGranted(event.request_id), now)
    assert isinstance(dispatch, c.Dispatch)
    return dispatch


def test_with_nothing_cached_the_whole_prompt_is_computed() -> None:
    dispatch = dispatched(make(), arrival())
    assert dispatch.matched_tokens == 0
    assert dispatch.expected_ttft_s == pytest.approx(1.01)
    assert dispatch.expected_tbt_s == pytest.approx(0.01)


def test_the_instance_with_the_local_prefix_wins() -> None:
    conductor = make()
    conductor.handle(e.BlocksStored("n1", KEYS[:6]), 0)
    dispatch = dispatched(conductor, arrival())
    assert (dispatch.prefill, dispatch.matched_tokens) == ("p1", 60)
    assert dispatch.expected_ttft_s == pytest.approx(0.41)


def test_a_busy_holder_loses_to_one_that_fetches() -> None:
    conductor = make(decodes=2)
    conductor.handle(e.BlocksStored("n1", KEYS[:6]), 0)
    assert dispatched(conductor, arrival("r1")).prefill == "p1"
    # p1: queue 0.41 + 0.41; p0: fetches 6 blocks in 0.12, computes 41 tokens in 0.41.
    second = dispatched(conductor, arrival("r2"))
    assert (second.prefill, second.matched_tokens) == ("p0", 60)
    assert second.expected_ttft_s == pytest.approx(0.53)


def test_a_remote_prefix_that_is_not_longer_by_the_threshold_is_recomputed() -> None:
    conductor = make(prefills=1, threshold=2.0)
    conductor.handle(e.BlocksStored("n0", KEYS[:3]), 0)
    conductor.handle(e.BlocksStored("elsewhere", KEYS[:6]), 0)
    assert dispatched(conductor, arrival("r1")).matched_tokens == 30
    conductor.handle(e.BlocksStored("elsewhere", KEYS[:7]), 0)
    assert dispatched(conductor, arrival("r2")).matched_tokens == 70


def test_a_hole_ends_a_prefix() -> None:
    conductor = make(prefills=1)
    conductor.handle(e.BlocksStored("n0", [KEYS[0], KEYS[2]]), 0)
    assert dispatched(conductor, arrival()).matched_tokens == 10


def test_removed_blocks_count_no_more() -> None:
    conductor = make(prefills=1)
    conductor.handle(e.BlocksStored("n0", KEYS[:4]), 0)
    conductor.handle(e.BlocksRemoved("n0", KEYS[1:2]), 0)
    assert dispatched(conductor, arrival()).matched_tokens == 10


def test_a_draining_instance_gets_nothing_more_and_keeps_what_it_has() -> None:
    conductor = make(prefills=2, decodes=2)
    conductor.handle(e.BlocksStored("n1", KEYS[:6]), 0)
    first = dispatched(conductor, arrival("r0"))
    for name in (first.prefill, first.decode):
        conductor.handle(e.InstanceDraining(name), 0)
    for number in range(1, 6):
        later = dispatched(conductor, arrival(f"r{number}"))
        assert (later.prefill, later.decode) == ("p0", "d1" if first.decode == "d0" else "d0")
    assert conductor.num_requests == 6
    conductor.handle(e.InstanceDraining("p0"), 0)
    assert conductor.missing() == ["no prefill instance has joined"]
    assert conductor.describe_models() == []
    (refusal,) = conductor.handle(arrival("late"), 0)
    assert isinstance(refusal, c.Unavailable)


def test_requests_that_arrive_together_do_not_herd() -> None:
    conductor = make(prefills=4, decodes=4)
    chosen = [dispatched(conductor, arrival(f"r{number}")).prefill for number in range(8)]
    assert sorted(chosen) == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]


def test_an_urgent_request_does_not_wait_for_what_is_less_urgent() -> None:
    conductor = make(prefills=1, decodes=2, ttft_slo_s=2.5)
    dispatched(conductor, arrival("urgent", priority=-1))
    dispatched(conductor, arrival("r1"))
    (reject,) = conductor.handle(arrival("r2"), 0)
    assert isinstance(reject, c.Reject)
    assert "3.03s exceeds" in reject.reason
    # Only the other urgent one is computed before it: 1.01 + 1.01.
    assert dispatched(conductor, arrival("r3", priority=-1)).expected_ttft_s == pytest.approx(2.02)


def test_who_waited_for_another_begins_when_that_has_ended() -> None:
    conductor = make(prefills=1, decodes=4)
    for name in ("a", "b"):
        dispatched(conductor, arrival(name))
    conductor.handle(e.PrefillEnded("a", 0, 0.0), 1.01)
    # `b` runs since 1.01 and not since it came: 0.71 s are left of it, and then there is this one's 1.01.
    assert dispatched(conductor, arrival("c"), 1.31).expected_ttft_s == pytest.approx(0.71 + 1.01)
    conductor.handle(e.RequestEnded("c"), 1.41)  # it waited, so `b` goes on as before
    assert dispatched(conductor, arrival("d"), 1.51).expected_ttft_s == pytest.approx(0.51 + 1.01)


def test_a_less_urgent_request_goes_where_fewer_go_first() -> None:
    conductor = make(prefills=2, decodes=4)
    first = dispatched(conductor, arrival("urgent", priority=-1)).prefill
    second = dispatched(conductor, arrival("later", tokens=201, priority=5)).prefill
    assert first != second
    # `second` has the longer queue, but all of it gives way to a request of priority 0.
    assert dispatched(conductor, arrival("r", priority=0)).prefill == second


def test_ties_are_broken_by_the_seed() -> None:
    runs = [[dispatched(make(prefills=5), arrival()).prefill for _ in range(1)] for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


def test_decode_goes_to_the_least_loaded_with_room() -> None:
    conductor = make(decodes=2)
    first, second = dispatched(conductor, arrival("a")), dispatched(conductor, arrival("b"))
    assert {first.decode, second.decode} == {"d0", "d1"}
    conductor.handle(e.RequestEnded("a"), 0)
    assert dispatched(conductor, arrival("c")).decode == first.decode


def test_a_full_decode_pool_is_429_and_room_comes_back() -> None:
    conductor = make()
    dispatched(conductor, arrival("big", tokens=901, max_tokens=99))
    (reject,) = conductor.handle(arrival("r"), 0)
    assert isinstance(reject, c.Reject)
    assert "11 blocks" in reject.reason
    assert reject.retry_after_s > 0
    conductor.handle(e.RequestEnded("big"), 0)
    dispatched(conductor, arrival("again"))


def test_what_can_never_fit_is_hopeless() -> None:
    conductor = make()
    (reject,) = conductor.handle(arrival(tokens=901, max_tokens=100), 0)
    assert reject == c.Reject("r", reject.reason, reject.retry_after_s, hopeless=True)  # type: ignore[union-attr]


def test_a_prompt_goes_only_where_its_kv_can_ever_lie() -> None:
    conductor = make(prefills=0)
    conductor.handle(e.InstanceJoined("small", "prefill", offer(blocks=10)), 0)
    (reject,) = conductor.handle(arrival(tokens=101), 0)
    assert isinstance(reject, c.Reject)
    assert reject.hopeless
    assert (
        "no prefill instance has the 11 blocks of KV memory that the prompt needs (the largest has 10)" in reject.reason
    )
    conductor.handle(e.InstanceJoined("large", "prefill", offer(blocks=11)), 0)
    assert dispatched(conductor, arrival("a", tokens=101)).prefill == "large"
    # Also where the small one would be sooner.
    assert dispatched(conductor, arrival("b", tokens=101)).prefill == "large"
    assert dispatched(conductor, arrival("c", tokens=100)).prefill == "small"
    assert conductor.check() == []


@pytest.mark.parametrize("seed", range(6))
def test_of_instances_that_do_equally_well_one_with_room_takes_the_prompt(seed: int) -> None:
    conductor = make(prefills=0, decodes=3)
    conductor._prefill._random.seed(seed)
    for name, blocks in (("full", 25), ("roomy", 100)):
        conductor.handle(e.InstanceJoined(name, "prefill", offer(name, blocks=blocks)), 0)
        # 201 tokens, 21 blocks, and little to compute: both are busy for the same time.
        conductor.handle(e.BlocksStored(name, KEYS), 0)
    firsts = [dispatched(conductor, arrival(f"first{number}", tokens=201)).prefill for number in range(2)]
    assert sorted(firsts) == ["full", "roomy"]
    assert dispatched(conductor, arrival("r", tokens=101)).prefill == "roomy"
    (decision,) = conductor.decisions(1, "r", 0)
    assert {candidate.prefill: candidate.free_blocks for candidate in decision.candidates} == {"full": 4, "roomy": 79}
    assert decision.reason in ("", "roomy has 79 blocks of KV memory free, full not the 11 it needs")
    for first in ("first0", "first1"):
        conductor.handle(e.PrefillEnded(first, 0, 0.1), 0)
    assert all(instance.free_blocks() >= 25 - 11 for instance in conductor._prefill.instances.values())


def test_a_refused_reservation_tries_the_next_instance_and_then_rejects() -> None:
    conductor = make(decodes=2)
    (first,) = conductor.handle(arrival(), 0)
    (second,) = conductor.handle(e.ReservationRefused("r", "full"), 0)
    assert isinstance(first, c.ReserveDecode)
    assert isinstance(second, c.ReserveDecode)
    assert first.decode != second.decode
    (reject,) = conductor.handle(e.ReservationRefused("r", "full as well"), 0)
    assert isinstance(reject, c.Reject)
    assert "full as well" in reject.reason
    assert conductor.num_requests == 0
    assert conductor.check() == []


@pytest.mark.parametrize("full", [[False, True], [True, False], [False, False]])
def test_nobody_is_turned_away_for_an_instance_that_cannot_be_reached(full: list[bool]) -> None:
    conductor = make(decodes=2)
    conductor.handle(arrival(), 0)
    conductor.handle(e.ReservationRefused("r", "first", full=full[0]), 0)
    (answer,) = conductor.handle(e.ReservationRefused("r", "second", full=full[1]), 0)
    assert isinstance(answer, c.Unavailable)
    (decision,) = (found for found in conductor.decisions(9, "r", 0) if found.outcome != "dispatched")
    assert decision.outcome == "unavailable"
    assert conductor.check() == []


@pytest.mark.parametrize("grant", [False, True])
def test_a_cancelled_request_releases_its_memory(grant: bool) -> None:
    conductor = make()
    conductor.handle(arrival(), 0)
    if grant:
        conductor.handle(e.ReservationGranted("r"), 0)
    assert conductor.handle(e.RequestEnded("r"), 0) == [c.ReleaseDecode("r", "d0")]
    assert conductor.handle(e.ReservationGranted("r"), 0) == []
    assert conductor.check() == []


def test_what_its_decode_instance_has_ended_is_not_released_again() -> None:
    conductor = make()
    conductor.handle(arrival(), 0)
    conductor.handle(e.ReservationGranted("r"), 0)
    assert conductor.handle(e.RequestEnded("r", released=True), 0) == []
    assert conductor.num_requests == 0
    assert conductor.check() == []


def test_without_instances_it_is_503() -> None:
    (answer,) = make(prefills=0).handle(arrival(), 0)
    assert isinstance(answer, c.Unavailable)
    assert "no prefill instance" in answer.reason
    (answer,) = make(decodes=0).handle(arrival(), 0)
    assert isinstance(answer, c.Unavailable)
    assert "no decode instance" in answer.reason


def test_instances_of_different_fingerprints_are_not_paired() -> None:
    conductor = make(decodes=0)
    conductor.handle(e.InstanceJoined("d", "decode", offer(fingerprint=b"other")), 0)
    (answer,) = conductor.handle(arrival(), 0)
    assert isinstance(answer, c.Unavailable)
    assert conductor.describe_models() == []
    assert "different models" in conductor.missing()[0]


@pytest.mark.parametrize("name", ["p0", "d0"])
def test_an_instance_that_leaves_before_the_dispatch_ends_the_request(name: str) -> None:
    conductor = make(prefills=1)
    conductor.handle(arrival(), 0)
    commands = conductor.handle(e.InstanceLeft(name), 0)
    assert any(isinstance(command, c.Unavailable) and name in command.reason for command in commands)
    assert conductor.num_requests == 0


def test_a_prefill_instance_that_leaves_later_does_not_end_what_decodes() -> None:
    conductor = make(prefills=1)
    dispatched(conductor, arrival())
    conductor.handle(e.PrefillEnded("r", 0, 1.0), 1)
    assert conductor.handle(e.InstanceLeft("p0"), 2) == []
    assert conductor.num_requests == 1


def test_objectives_reject_with_a_reason() -> None:
    (reject,) = make(ttft_slo_s=1.0).handle(arrival(), 0)
    assert isinstance(reject, c.Reject)
    assert "1.01s exceeds the objective of 1s" in reject.reason
    conductor = make(tbt_slo_s=0.015)
    dispatched(conductor, arrival("a"))
    (reject,) = conductor.handle(arrival("b"), 0)
    assert isinstance(reject, c.Reject)
    assert re.fullmatch(r"expected time between tokens \d+ms exceeds the objective of 15ms", reject.reason)


def test_an_objective_that_is_missed_by_little_says_by_how_much() -> None:
    (reject,) = make(ttft_slo_s=1.009).handle(arrival(), 0)
    assert isinstance(reject, c.Reject)
    assert reject.reason == "expected time to first token 1.01s exceeds the objective of 1.01s by 1ms"


def test_a_forgotten_request_ends_at_its_deadline() -> None:
    conductor = make()
    dispatched(conductor, arrival(deadline=50))
    assert conductor.next_deadline() == 50
    assert conductor.handle(e.Tick(), 51) == [c.ReleaseDecode("r", "d0")]
    assert conductor.num_requests == 0


def test_observed_times_correct_the_predictions() -> None:
    conductor = make(prefills=1, decodes=3)
    before = dispatched(conductor, arrival("r0")).expected_ttft_s
    for number in range(30):
        conductor.handle(e.PrefillEnded(f"r{number}", 0, 2.02), 0)
        conductor.handle(e.RequestEnded(f"r{number}"), 0)
        after = dispatched(conductor, arrival(f"r{number + 1}")).expected_ttft_s
    assert after == pytest.approx(2 * before, rel=0.01)
    for _ in range(30):
        conductor.handle(e.LoadReported("d0", InstanceLoad(running_requests=1, step_s=0.05)), 0)
    assert conductor.check() == []


def test_an_instance_that_was_slow_once_is_tried_again() -> None:
    conductor = make(prefills=2)
    first = dispatched(conductor, arrival("r0")).prefill
    conductor.handle(e.PrefillEnded("r0", 0, 20.0), 0)
    conductor.handle(e.RequestEnded("r0"), 0)

    def expected(name: str) -> float:
        (decision,) = conductor.decisions(1, "", 0)
        return next(one.prefill_s for one in decision.candidates if one.prefill == name)

    for number in range(1, 6):
        assert dispatched(conductor, arrival(f"r{number}")).prefill != first
        conductor.handle(e.PrefillEnded(f"r{number}", 0, 1.01), 0)
        conductor.handle(e.RequestEnded(f"r{number}"), 0)
    slow_s = expected(first)
    for now in range(201):
        conductor.handle(e.LoadReported(first, InstanceLoad()), float(now))
    dispatched(conductor, arrival("r9"))
    assert expected(first) == pytest.approx(1.01, rel=0.01)
    assert slow_s > 2.0


def test_decisions_say_why() -> None:
    conductor = make(prefills=12, max_decisions=3)
    conductor.handle(e.BlocksStored("n3", KEYS[:5]), 0)
    dispatched(conductor, arrival("r"))
    (decision,) = conductor.decisions(10, "r", now=4.0)
    assert (decision.outcome, decision.prefill, decision.age_s) == ("dispatched", "p3", 4.0)
    assert (decision.best_match_blocks, decision.best_match_holder) == (5, "n3")
    assert len(decision.candidates) == 9
    assert decision.candidates[0].local_blocks == 5
    for number in range(5):
        conductor.handle(arrival(f"x{number}"), 5)
    assert [found.request_id for found in conductor.decisions(10, "", 6)] == ["x4", "x3", "x2"]
    assert [found.request_id for found in conductor.decisions(2, "x", 6)] == ["x4", "x3"]
    assert conductor.decisions(10, "x5", 6) == []


def test_a_decision_knows_all_instances_that_there_were() -> None:
    conductor = make(prefills=30, decodes=12)
    for number in range(12):  # a long queue where the longest prefix is, so that it is not among the first
        conductor.handle(e.BlocksStored("n7", KEYS[:9]), 0)
        dispatched(conductor, arrival(f"b{number}", priority=-1))
    conductor.handle(e.BlocksRemoved("n7", KEYS[5:]), 0)
    for number in range(30):
        if number != 7:
            conductor.handle(e.BlocksStored(f"n{number}", KEYS[:3]), 0)
    dispatch = dispatched(conductor, arrival("r"))
    (decision,) = conductor.decisions(1, "r", 0)
    names = [candidate.prefill for candidate in decision.candidates]
    assert (names[0], len(set(names)), decision.num_candidates) == (dispatch.prefill, 10, 30)
    assert (names[-1], decision.candidates[-1].local_blocks) == ("p7", 5)
    (everything,) = conductor.decisions(1, "r", 0, num_candidates=100)
    assert {candidate.prefill for candidate in everything.candidates} == {f"p{number}" for number in range(30)}
    assert everything.decodes[0].decode == dispatch.decode
    assert everything.decodes[0].tbt_s == dispatch.expected_tbt_s == min(one.tbt_s for one in everything.decodes)
    assert len(everything.decodes) == 12
    conductor.handle(e.InstanceLeft("p7"), 1)  # what is kept is what was
    assert conductor.decisions(1, "r", 1, num_candidates=100)[0].candidates == everything.candidates


def test_what_an_instance_fetches_is_copied_to_its_node() -> None:
    conductor = make(decodes=3, replication_threshold=2.0)
    conductor.handle(e.BlocksStored("n1", KEYS[:6]), 0)
    conductor.handle(arrival("r0"), 0)
    (only,) = conductor.handle(e.ReservationGranted("r0"), 0)  # p1, whose node has all there is
    assert isinstance(only, c.Dispatch)
    conductor.handle(e.BlocksStored("n0", KEYS[:1]), 0)
    conductor.handle(arrival("r1"), 0)
    dispatch, copy = conductor.handle(e.ReservationGranted("r1"), 0)
    assert isinstance(dispatch, c.Dispatch)
    assert dispatch.prefill == "p0"
    assert copy == c.CopyBlocks("n0", KEYS[1:6])


def test_what_is_not_much_shorter_is_not_copied() -> None:
    conductor = make(prefills=1, replication_threshold=2.0)
    conductor.handle(e.BlocksStored("n0", KEYS[:3]), 0)
    conductor.handle(e.BlocksStored("elsewhere", KEYS[:6]), 0)
    conductor.handle(arrival("r"), 0)
    (only,) = conductor.handle(e.ReservationGranted("r"), 0)
    assert isinstance(only, c.Dispatch)


def test_an_instance_with_the_prefix_in_dram_wins_over_one_with_it_below() -> None:
    """A block takes 0.05 s to load, 0.1 s to compute."""
    conductor = make()
    conductor.handle(e.BlocksStored("n0", KEYS[:7], LOWER), 0)
    conductor.handle(e.BlocksStored("n1", KEYS[:4]), 0)
    dispatch = dispatched(conductor, arrival())
    # p0 reads four blocks at n1 and loads three: 0.08 + 0.15 + 0.31 s; p1 computes all but four: 0.61 s.
    assert (dispatch.prefill, dispatch.matched_tokens) == ("p0", 70)
    assert dispatch.expected_ttft_s == pytest.approx(0.54)
    conductor.handle(e.RequestEnded("r"), 0)
    conductor.handle(e.BlocksStored("n1", KEYS[:7]), 1)
    dispatch = dispatched(conductor, arrival("s"), 1)
    assert (dispatch.prefill, dispatch.matched_tokens) == ("p1", 70)
    assert dispatch.expected_ttft_s == pytest.approx(0.31)


def test_what_is_loaded_or_rather_computed_is_in_the_decision() -> None:
    conductor = make(prefills=1)
    conductor.handle(e.BlocksStored("n0", KEYS[:2]), 0)
    conductor.handle(e.BlocksStored("n0", KEYS[2:6], LOWER), 0)
    (reserve,) = conductor.handle(arrival("r"), 0)
    assert isinstance(reserve, c.ReserveDecode)
    assert reserve.matched_blocks == 6
    (decision,) = conductor.decisions(1, "r", 0)
    assert (decision.best_match_blocks, decision.best_match_lower_blocks) == (6, 4)
    (only,) = decision.candidates
    assert (only.local_blocks, only.held_blocks, only.loaded_blocks, only.recomputed_blocks) == (6, 6, 4, 0)
    assert only.transfer_s == pytest.approx(0.2)
    # From the disk it comes slower than it is computed.
    slow = structs.replace(offer("n0"), cost=structs.replace(COST, load_bytes_per_s=1000 / 0.11))
    conductor.handle(e.InstanceJoined("p0", "prefill", slow), 1)
    (reserve,) = conductor.handle(arrival("s"), 1)
    assert isinstance(reserve, c.ReserveDecode)
    assert reserve.matched_blocks == 2
    (decision,) = conductor.decisions(1, "s", 1)
    (only,) = decision.candidates
    assert (only.local_blocks, only.held_blocks, only.loaded_blocks, only.recomputed_blocks) == (2, 6, 0, 4)
    assert (only.transfer_s, only.prefill_s) == (0.0, pytest.approx(0.81))


def test_a_tier_is_as_fast_as_it_was_seen_to_be() -> None:
    """A block takes 0.05 s to load by the hint, 0.1 s to compute."""
    conductor = make(prefills=1)
    conductor.handle(e.BlocksStored("n0", KEYS[:6], LOWER), 0)

    def loaded(now: float) -> int:
        dispatch = dispatched(conductor, arrival(str(now)), now)
        conductor.handle(e.RequestEnded(str(now)), now)
        return dispatch.matched_tokens

    assert loaded(0.0) == 60
    conductor.handle(e.BlocksLoaded("n0", 1000, 5.0), 1)
    conductor.handle(e.BlocksLoaded("elsewhere", 1 << 20, 1e3), 1)
    assert loaded(1.0) == 60, "few bytes say nothing, nor do other nodes"
    for _ in range(20):
        conductor.handle(e.BlocksLoaded("n0", 1 << 20, 4 * (1 << 20) / COST.load_bytes_per_s), 2)
    assert loaded(2.0) == 0
    for now in range(3, 64):
        conductor.handle(e.LoadReported("p0", InstanceLoad()), now)
    assert loaded(64.0) == 60, "it is tried again"


def test_what_a_node_has_below_dram_is_not_copied_to_it() -> None:
    conductor = make(prefills=1, replication_threshold=2.0)
    slow = structs.replace(offer("n0"), cost=structs.replace(COST, load_bytes_per_s=1.0))
    conductor.handle(e.InstanceJoined("p0", "prefill", slow), 0)
    conductor.handle(e.BlocksStored("n0", KEYS[:6], LOWER), 0)
    conductor.handle(arrival("r"), 0)
    (only,) = conductor.handle(e.ReservationGranted("r"), 0)
    assert isinstance(only, c.Dispatch)
    assert only.matched_tokens == 0


def test_least_loaded_does_not_look_at_the_cache() -> None:
    conductor = make(policy=LeastLoaded, decodes=4)
    conductor.handle(e.BlocksStored("n1", KEYS), 0)
    chosen = [dispatched(conductor, arrival(f"r{number}")).prefill for number in range(2)]
    assert sorted(chosen) == ["p0", "p1"]


def test_an_instance_that_came_back_knows_nothing_of_what_ran_there() -> None:
    conductor = make(prefills=1)
    dispatched(conductor, arrival("r"))
    conductor.handle(e.InstanceLeft("d0"), 0.5)
    conductor.handle(e.InstanceJoined("d0", "decode", offer()), 0.6)
    assert conductor.handle(e.PrefillEnded("r", 0, 1.0), 1) == []
    assert conductor.handle(e.RequestEnded("r", released=True, output_tokens=5), 2) == []
    assert conductor.check() == []


class ConductorMachine(RuleBasedStateMachine):
    """Random histories leave nothing behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conductor = make(prefills=2, decodes=2, fairness=FairnessConfig(), ttft_slo_s=9.0, tbt_slo_s=0.06)
        self.now = 0.0
        self.number = 0
        self.reserving: list[str] = []
        self.running: list[str] = []
        self.ended: set[str] = set()

    def feed(self, event: e.Event) -> None:
        for command in self.conductor.handle(event, self.now):
            match command:
                case c.ReserveDecode():
                    self.reserving.append(command.request_id)
                case c.Dispatch():
                    self.running.append(command.request_id)
                case c.Reject() | c.Unavailable():
                    assert command.request_id not in self.ended, "a request was answered twice"
                    self.ended.add(command.request_id)
                case c.ReleaseDecode():
                    pass

    @rule(tokens=st.integers(1, 300), tenant=st.sampled_from(["flood", "steady"]))
    def arrive(self, tokens: int, tenant: str) -> None:
        self.number += 1
        self.feed(arrival(f"r{self.number}", tokens=tokens, deadline=self.now + 30, tenant=tenant))

    @rule(granted=st.booleans())
    def reserve(self, granted: bool) -> None:
        if self.reserving:
            request = self.reserving.pop(0)
            self.feed(e.ReservationGranted(request) if granted else e.ReservationRefused(request, "full"))

    @rule()
    def prefilled(self) -> None:
        if self.running:
            self.feed(e.PrefillEnded(self.running[0], 0, 0.1))

    @rule(cancel=st.booleans())
    def end(self, cancel: bool) -> None:
        pool = self.reserving if cancel and self.reserving else self.running
        if pool:
            self.feed(e.RequestEnded(pool.pop(0)))

    @rule(name=st.sampled_from(["p0", "p1", "d0", "d1"]), back=st.booleans())
    def die(self, name: str, back: bool) -> None:
        self.feed(e.InstanceLeft(name))
        if back:
            role = "prefill" if name.startswith("p") else "decode"
            self.feed(e.InstanceJoined(name, role, offer("n" + name[1:])))

    @rule(seconds=st.floats(0, 20))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.feed(e.Tick())

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.conductor.check() == []

    def teardown(self) -> None:
        self.now += 1000
        self.feed(e.Tick())
        assert self.conductor.num_requests == 0
        assert self.conductor.check() == []


TestConductorMachine = ConductorMachine.TestCase
TestConductorMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
