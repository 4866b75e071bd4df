"""Placement over whole columns chooses as a plain reading of Algorithm 1 does, one instance after the other."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.conductor import Conductor, ConductorSettings
from mooncake_core.conductor.instances import DecodeInstance, PrefillInstance
from mooncake_core.conductor.policies import KVCacheCentric
from mooncake_core.conductor.policies.contract import PolicySettings
from mooncake_core.conductor.prefill_pool import NEARLY
from mooncake_core.wire.messages.membership import CostHint, InstanceLoad, InstanceOffer, ModelOffer
from mooncake_core.wire.messages.tiering import DRAM, LOWER, Tier

BLOCK_TOKENS = 10
KEYS = [bytes([number]) * 16 for number in range(6)]
THRESHOLD = 1.5
Held = dict[bytes, Tier]
"""A node's blocks."""
ALIKE = 1 + 1e-9
"""Sums in another order."""


@dataclass(frozen=True)
class Placement:
    """What a plain reading expects of one instance."""

    ttft_s: float


def offer(node: str, blocks: int, speed: float) -> InstanceOffer:
    model = ModelOffer(
        name="m", fingerprint=b"f", block_tokens=BLOCK_TOKENS, block_bytes=1000, max_context_tokens=1000, vocab_size=9
    )
    cost = CostHint(
        prefill_base_s=0.1,
        prefill_per_token_s=0.01 / speed,
        prefill_per_token2_s=1e-5,
        step_base_s=0.01,
        step_per_sequence_s=0.01 / speed,
        step_per_context_token_s=1e-5,
        fetch_bytes_per_s=20_000 * speed,
        load_bytes_per_s=12_000 * speed,
    )
    return InstanceOffer(model=model, num_blocks=blocks, local_node=node, cost=cost)


def plain_prefill(
    instances: Sequence[PrefillInstance], held: dict[str, Held], arrival: e.RequestArrived, now: float
) -> dict[str, Placement]:
    """Algorithm 1 of FAST'25, section 4.1, instance by instance; where something lies below DRAM, length by length."""
    everywhere = set().union(*held.values())
    best = _prefix(arrival.block_keys, everywhere)
    in_dram = {key for keys in held.values() for key, tier in keys.items() if tier == DRAM}
    loads = any(tier == LOWER for keys in held.values() for tier in map(keys.get, arrival.block_keys[:best]))
    found = {}
    for instance in instances:
        own = held[instance.offer.local_node]
        local = _prefix(arrival.block_keys, own)
        fetched = best - local if best > local * THRESHOLD else 0
        if loads:
            own_dram = {key for key in arrival.block_keys[:local] if own[key] == DRAM}
            least = min(
                _plain_cut(instance, arrival, used, own_dram, in_dram, local) for used in range(local + fetched + 1)
            )
            found[instance.name] = Placement(instance.queue_s(now, arrival.priority) + least)
            continue
        transfer_s = instance.cost.fetch_s(fetched * 1000)
        prefill_s = instance.cost.prefill_s(arrival.prompt_tokens, (local + fetched) * BLOCK_TOKENS)
        alone_s = instance.cost.prefill_s(arrival.prompt_tokens, local * BLOCK_TOKENS)
        if fetched and transfer_s + prefill_s > alone_s:
            fetched, transfer_s, prefill_s = 0, 0.0, alone_s
        found[instance.name] = Placement(instance.queue_s(now, arrival.priority) + transfer_s + prefill_s)
    return found


def _plain_cut(
    instance: PrefillInstance,
    arrival: e.RequestArrived,
    used: int,
    own_dram: set[bytes],
    in_dram: set[bytes],
    local: int,
) -> float:
    """Seconds if so many leading blocks are used: what somebody has in DRAM is read there, and else where it is loaded."""
    keys = arrival.block_keys[:used]
    loaded = [key for key in keys if key not in in_dram]
    fetched = [key for at, key in enumerate(keys) if key not in own_dram and (at >= local or key in in_dram)]
    rates = instance.offer.cost
    transfer_s = len(loaded) * 1000 / rates.load_bytes_per_s + len(fetched) * 1000 / rates.fetch_bytes_per_s
    return transfer_s + instance.cost.prefill_s(arrival.prompt_tokens, used * BLOCK_TOKENS)


def possible_winners(
    instances: Sequence[PrefillInstance], expected: dict[str, Placement], needed: int, avoid: Sequence[str]
) -> set[str]:
    """All that may win: ties are broken by chance."""
    large = [instance for instance in instances if instance.offer.num_blocks >= needed]
    allowed = [instance for instance in large if instance.name not in avoid] or large
    if not allowed:
        return set()
    least = min(expected[instance.name].ttft_s for instance in allowed)
    first = [instance for instance in allowed if expected[instance.name].ttft_s <= least * ALIKE]
    winners = {instance.name for instance in first if instance.free_blocks() >= needed}
    if len(winners) < len(first):  # one without room may have been first: then those count that do as well
        alike = [
            instance
            for instance in allowed
            if expected[instance.name].ttft_s <= least * NEARLY and instance.free_blocks() >= needed
        ]
        shortest = min((expected[instance.name].ttft_s for instance in alike), default=math.inf)
        winners |= {instance.name for instance in alike if expected[instance.name].ttft_s <= shortest * ALIKE}
        winners = winners or {instance.name for instance in first}
    return winners


def possible_decodes(instances: Sequence[DecodeInstance], arrival: e.RequestArrived) -> set[str]:
    needed = -(-(arrival.prompt_tokens + arrival.max_tokens) // BLOCK_TOKENS)
    fitting = [instance for instance in instances if instance.free_blocks() >= needed]
    fitting = [instance for instance in fitting if instance.name not in arrival.avoid] or fitting
    least = min((instance.tbt_with(arrival.prompt_tokens) for instance in fitting), default=math.inf)
    return {instance.name for instance in fitting if instance.tbt_with(arrival.prompt_tokens) <= least * ALIKE}


def _prefix(query: Sequence[bytes], keys: Collection[bytes]) -> int:
    length = 0
    while length < len(query) and query[length] in keys:
        length += 1
    return length


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(DRAM), st.integers(0, 4), st.sets(st.sampled_from(KEYS), min_size=1)),
        st.tuples(st.just(LOWER), st.integers(0, 4), st.sets(st.sampled_from(KEYS), min_size=1)),
        st.tuples(st.just("remove"), st.integers(0, 4), st.sets(st.sampled_from(KEYS), min_size=1)),
        st.tuples(
            st.just("arrive"),
            st.integers(1, 150),
            st.tuples(st.integers(-1, 1), st.booleans(), st.floats(0, 3)),
        ),
        st.tuples(st.just("prefilled"), st.integers(0, 5), st.floats(0.01, 3)),
        st.tuples(st.just("ended"), st.integers(0, 5), st.none()),
        st.tuples(st.just("load"), st.integers(0, 3), st.floats(0.001, 1)),
        st.tuples(st.just("drain"), st.integers(0, 2), st.booleans()),
    ),
    max_size=40,
)


@given(STEPS, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_it_chooses_as_a_plain_reading_does(steps: list[tuple[str, int, object]], seed: int) -> None:
    conductor = Conductor(
        ConductorSettings(), KVCacheCentric(PolicySettings(balancing_threshold=THRESHOLD)), "test", random.Random(seed)
    )
    held: dict[str, Held] = {f"n{number}": {} for number in range(5)}
    for number in range(4):
        speed, blocks = 1.0 + number // 2, 30 if number % 2 else 14
        conductor.handle(e.InstanceJoined(f"p{number}", "prefill", offer(f"n{number}", blocks, speed)), 0)
        conductor.handle(e.InstanceJoined(f"d{number}", "decode", offer("", 2 * blocks, speed)), 0)
    now, running, count, rejected = 0.0, [], 0, 0
    for kind, value, detail in steps:
        match kind, detail:
            case "dram" | "lower" as tier, set() as keys:
                held[f"n{value}"].update(dict.fromkeys(keys, tier))
                conductor.handle(e.BlocksStored(f"n{value}", list(keys), tier), now)
            case "remove", set() as keys:
                held[f"n{value}"] = {key: tier for key, tier in held[f"n{value}"].items() if key not in keys}
                conductor.handle(e.BlocksRemoved(f"n{value}", list(keys)), now)
            case "arrive", (priority, avoids, passed):
                now += passed
                count += 1
                arrival = e.RequestArrived(
                    str(count),
                    "m",
                    value,
                    9,
                    KEYS[: (value - 1) // BLOCK_TOKENS],
                    "",
                    1e9,
                    avoid=("p1", "d1") if avoids else (),
                    fingerprint=b"f",
                    priority=priority,
                )
                prefills = [one for one in conductor._prefill.instances.values() if not one.draining]
                decodes = [one for one in conductor._decode.instances.values() if not one.draining]
                expected = plain_prefill(prefills, held, arrival, now)
                winners = possible_winners(prefills, expected, -(-value // BLOCK_TOKENS), arrival.avoid)
                takers = possible_decodes(decodes, arrival)
                (command,) = conductor.handle(arrival, now)
                if not winners or not takers:
                    assert isinstance(command, c.Reject)
                    rejected += 1
                    continue
                (dispatch,) = conductor.handle(e.ReservationGranted(str(count)), now)
                assert isinstance(dispatch, c.Dispatch)
                assert dispatch.prefill in winners
                assert dispatch.decode in takers
                assert dispatch.expected_ttft_s == pytest.approx(expected[dispatch.prefill].ttft_s)
                running.append(str(count))
            case "prefilled", float() as took_s if running:
                conductor.handle(e.PrefillEnded(running[value % len(running)], 0, took_s), now)
            case "ended", _ if running:
                conductor.handle(e.RequestEnded(running.pop(value % len(running))), now)
            case "load", float() as step_s:
                conductor.handle(e.LoadReported(f"d{value}", InstanceLoad(running_requests=3, step_s=step_s)), now)
            case "drain", _:
                conductor.handle(e.InstanceDraining(f"{'p' if detail else 'd'}{value}"), now)
        assert conductor.check() == []


@pytest.mark.parametrize("spread", [False, True])
def test_one_system_prompt_for_all_starves_nobody(spread: bool) -> None:
    """A light load: each request finds all of a hundred instances idle. What was computed is stored at its instance's node."""
    conductor = Conductor(
        ConductorSettings(spread_shared=spread), KVCacheCentric(PolicySettings()), "test", random.Random(0)
    )
    for number in range(100):
        conductor.handle(e.InstanceJoined(f"p{number}", "prefill", offer(f"n{number}", 1000, 1.0)), 0)
    conductor.handle(e.InstanceJoined("d", "decode", offer("", 10_000, 1.0)), 0)
    served = dict.fromkeys((f"p{number}" for number in range(100)), 0)
    for number in range(1500):
        own = [number.to_bytes(16, "big")]
        arrival = e.RequestArrived(str(number), "m", 51, 9, [*KEYS[:4], *own], "", 1e9)
        conductor.handle(arrival, number)
        (dispatch,) = conductor.handle(e.ReservationGranted(str(number)), number)
        assert isinstance(dispatch, c.Dispatch)
        served[dispatch.prefill] += 1
        conductor.handle(e.PrefillEnded(str(number), 0, 0.0), number)
        conductor.handle(e.BlocksStored("n" + dispatch.prefill[1:], arrival.block_keys), number)
        conductor.handle(e.RequestEnded(str(number)), number)
    if spread:
        assert min(served.values()) > 0
        assert max(served.values()) < 60
    else:
        assert max(served.values()) > 1400


def test_a_prefix_that_some_share_goes_to_as_many_as_its_share_asks_for() -> None:
    conductor = Conductor(
        ConductorSettings(spread_shared=True), KVCacheCentric(PolicySettings()), "test", random.Random(0)
    )
    for number in range(20):
        conductor.handle(e.InstanceJoined(f"p{number}", "prefill", offer(f"n{number}", 1000, 1.0)), 0)
    conductor.handle(e.InstanceJoined("d", "decode", offer("", 10_000, 1.0)), 0)
    served: list[str] = []
    for number in range(1000):
        shared = number % 5 == 0  # a fifth of them: four of twenty instances
        keys = [KEYS[0], KEYS[1]] if shared else [(2 * number + 1000 + index).to_bytes(16, "big") for index in range(2)]
        conductor.handle(e.RequestArrived(str(number), "m", 25, 9, keys, "", 1e9), number)
        (dispatch,) = conductor.handle(e.ReservationGranted(str(number)), number)
        assert isinstance(dispatch, c.Dispatch)
        if shared:
            served.append(dispatch.prefill)
            conductor.handle(e.BlocksStored("n" + dispatch.prefill[1:], keys), number)
        conductor.handle(e.PrefillEnded(str(number), 0, 0.0), number)
        conductor.handle(e.RequestEnded(str(number)), number)
    assert 4 <= len(set(served[50:])) <= 6


def test_one_that_seems_a_little_faster_does_not_get_all() -> None:
    def shares(equal_within: float) -> list[int]:
        conductor = Conductor(
            ConductorSettings(equal_within=equal_within), KVCacheCentric(PolicySettings()), "test", random.Random(0)
        )
        for number, speed in enumerate((1.0, 1.03, 2.0)):
            conductor.handle(e.InstanceJoined(f"p{number}", "prefill", offer("", 1000, speed)), 0)
        conductor.handle(e.InstanceJoined("d", "decode", offer("", 10_000, 1.0)), 0)
        chosen = []
        for number in range(100):
            if number == 50:
                conductor.handle(e.InstanceLeft("p2"), number)
            conductor.handle(e.RequestArrived(str(number), "m", 51, 9, [], "", 1e9), number)
            (dispatch,) = conductor.handle(e.ReservationGranted(str(number)), number)
            assert isinstance(dispatch, c.Dispatch)
            chosen.append(dispatch.prefill)
            conductor.handle(e.PrefillEnded(str(number), 0, 0.0), number)
            conductor.handle(e.RequestEnded(str(number)), number)
        return [chosen.count(f"p{number}") for number in range(3)]

    assert shares(0.0) == [0, 50, 50]
    slow, fast, fastest = shares(0.05)
    assert fastest == 50  # much faster is better still
    assert min(slow, fast) > 15
