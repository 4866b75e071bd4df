"""How much of a prefix pays to use, where some of it lies below DRAM: by hand, and against trying every length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.conductor.cost import CostModel, PrefillCosts
from mooncake_core.conductor.policies import CacheAware, KVCacheCentric, LeastLoaded
from mooncake_core.conductor.policies.contract import Policy, PolicySettings, PrefillViews, RequestView, Scores
from mooncake_core.kvcache.prefix_index import PrefixIndex
from mooncake_core.wire.messages.membership import CostHint
from mooncake_core.wire.messages.tiering import DRAM, LOWER, Tier

KEYS = [bytes([number]) for number in range(12)]
Held = dict[str, dict[bytes, Tier]]


def score(
    kind: type[Policy],
    held: Held,
    holders: list[str],
    *,
    load_s: float = 0.05,
    fetch_s: float = 0.02,
    token2_s: float = 0.0,
    prompt_tokens: int = 130,
) -> Scores:
    """A token takes 10 ms to compute, a block of 10 tokens `fetch_s` from another node and `load_s` from below DRAM."""
    index = PrefixIndex()
    for holder, keys in held.items():
        for key, tier in keys.items():
            index.stored(holder, [key], tier)
    hint = CostHint(
        prefill_base_s=0.0,
        prefill_per_token_s=0.01,
        prefill_per_token2_s=token2_s,
        fetch_bytes_per_s=1 / fetch_s,
        load_bytes_per_s=1 / load_s,
    )
    match, column = index.match(KEYS), index.column(holders)
    views = PrefillViews(
        index.lengths(match, column),
        np.zeros(len(holders)),
        PrefillCosts([CostModel(hint) for _ in holders]),
        index.lower(match, column),
    )
    request = RequestView(
        number=0, prompt_tokens=prompt_tokens, block_tokens=10, block_bytes=1, best_blocks=match.reach
    )
    return kind(PolicySettings()).score(request, views)


def blocks(dram: int, lower: int = 0) -> dict[bytes, Tier]:
    """Leading blocks in DRAM, and after them such as lie below."""
    return {**dict.fromkeys(KEYS[:dram], DRAM), **dict.fromkeys(KEYS[dram : dram + lower], LOWER)}


@pytest.mark.parametrize("kind", [KVCacheCentric, CacheAware])
def test_what_is_loaded_takes_its_time(kind: type[Policy]) -> None:
    scores = score(kind, {"a": blocks(2, 6)}, ["a"])
    assert scores.transfer_s.tolist() == pytest.approx([6 * 0.05])
    assert scores.prefill_s.tolist() == pytest.approx([0.5])
    found = scores.of(0, "a")
    assert (found.local_blocks, found.held_blocks, found.loaded_blocks, found.recomputed_blocks) == (8, 8, 6, 0)


@pytest.mark.parametrize("kind", [KVCacheCentric, CacheAware])
def test_what_is_dearer_to_load_than_to_compute_is_computed(kind: type[Policy]) -> None:
    """A block takes 0.1 s to compute."""
    scores = score(kind, {"a": blocks(2, 6)}, ["a"], load_s=0.101)
    found = scores.of(0, "a")
    assert (found.local_blocks, found.held_blocks, found.loaded_blocks, found.recomputed_blocks) == (2, 8, 0, 6)
    assert (found.transfer_s, found.prefill_s) == (0.0, pytest.approx(1.1))
    assert score(kind, {"a": blocks(2, 6)}, ["a"], load_s=0.099).of(0, "a").loaded_blocks == 6


def test_of_two_that_have_it_the_one_with_it_in_dram_is_sooner_done() -> None:
    held = {"ssd": blocks(0, 8), "dram": blocks(8)}
    scores = score(KVCacheCentric, held, ["ssd", "dram"])
    assert scores.prefill_s.tolist() == pytest.approx([0.5, 0.5])
    # What another node has in DRAM is read from there, as the pool does it.
    assert scores.transfer_s.tolist() == pytest.approx([8 * 0.02, 0.0])
    assert scores.fetched_blocks.tolist() == [8, 0]
    assert [scores.of(row, "").loaded_blocks for row in range(2)] == [0, 0]
    assert scores.held_blocks.tolist() == [8, 8]


def test_a_fetched_block_is_loaded_first_where_nobody_has_it_in_dram() -> None:
    held = {"a": blocks(2, 6), "b": blocks(4)}
    scores = score(KVCacheCentric, held, ["none"])
    assert scores.fetched_blocks.tolist() == [8]
    assert scores.of(0, "none").loaded_blocks == 4  # the third and the fourth are in b's DRAM
    assert scores.transfer_s.tolist() == pytest.approx([8 * 0.02 + 4 * 0.05])


def test_a_prefix_is_used_up_to_where_loading_stops_paying() -> None:
    """Block n takes 0.1 s to compute, and 1 ms for each block before it and for half of itself, twice."""
    held = {**blocks(2, 2), **dict.fromkeys(KEYS[4:6], DRAM), **dict.fromkeys(KEYS[6:8], LOWER)}
    scores = score(CacheAware, {"a": held}, ["a"], load_s=0.14, token2_s=1e-5)
    # 2 and 3 take 0.105 + 0.107 s to compute: less than to load. But 4 and 5 come with them: 0.109 + 0.111 s. 6 and 7 do not
    # pay: 0.113 + 0.115 s.
    assert scores.local_blocks.tolist() == [6]
    assert scores.transfer_s.tolist() == pytest.approx([0.28])
    assert scores.of(0, "a").recomputed_blocks == 2


def test_late_blocks_pay_where_early_ones_do_not() -> None:
    """Block n takes 0.11 + 0.02 n seconds to compute: the first two 0.24 together, the last two 0.64."""
    early = score(CacheAware, {"a": blocks(0, 2)}, ["a"], load_s=0.125, token2_s=1e-4)
    late = score(CacheAware, {"a": blocks(10, 2)}, ["a"], load_s=0.125, token2_s=1e-4)
    assert (early.local_blocks.tolist(), late.local_blocks.tolist()) == ([0], [12])


TIERS = st.one_of(st.none(), st.just(DRAM), st.just(LOWER))


@given(
    st.lists(st.lists(TIERS, min_size=12, max_size=12), min_size=1, max_size=4),
    st.floats(0.01, 0.3),
    st.floats(0.01, 0.3),
    st.sampled_from([0.0, 1e-5, 1e-4]),
    st.sampled_from([KVCacheCentric, CacheAware, LeastLoaded]),
)
def test_it_is_as_soon_done_as_trying_every_length_finds(
    tiers: list[list[Tier | None]], load_s: float, fetch_s: float, token2_s: float, kind: type[Policy]
) -> None:
    names = [str(number) for number in range(len(tiers))]
    held: Held = {
        name: {key: tier for key, tier in zip(KEYS, row, strict=True) if tier is not None}
        for name, row in zip(names, tiers, strict=True)
    }
    rows = [*names, "none"]
    scores = score(kind, held, rows, load_s=load_s, fetch_s=fetch_s, token2_s=token2_s)
    reach = _leading(set().union(*held.values()))
    if not any(held[name].get(key) == LOWER for name in names for key in KEYS[:reach]):
        return  # whole prefixes are compared then
    for row, name in enumerate(rows):
        own = held.get(name, {})
        local = _leading(set(own))
        end = _end(kind, local, reach)
        best_s, _ = min(
            _plain(used, local, own, held, load_s, fetch_s, token2_s)
            for used in [*range(local), *range(local, end + 1)]
        )
        found = scores.of(row, name)
        assert found.transfer_s + found.prefill_s == pytest.approx(best_s)
        again_s, loaded = _plain(found.matched_blocks, local, own, held, load_s, fetch_s, token2_s)
        assert (again_s, loaded) == (pytest.approx(best_s), found.loaded_blocks)
        assert (found.held_blocks, found.recomputed_blocks) == (local, end - found.matched_blocks)


def _end(kind: type[Policy], local: int, reach: int) -> int:
    if kind is CacheAware or (kind is KVCacheCentric and local * 2 >= reach):
        return local
    return reach


def _plain(
    used: int, local: int, own: dict[bytes, Tier], held: Held, load_s: float, fetch_s: float, token2_s: float
) -> tuple[float, int]:
    """Seconds with so many blocks used, and how many of them are loaded."""
    total_s, loaded = 0.01 * (130 - 10 * used) + token2_s * (130**2 - (10 * used) ** 2), 0
    for position, key in enumerate(KEYS[:used]):
        in_dram = any(keys.get(key) == DRAM for keys in held.values())
        if own.get(key) == DRAM and position < local:
            continue
        total_s += 0.0 if position < local and not in_dram else fetch_s
        total_s += 0.0 if in_dram else load_s
        loaded += not in_dram
    return total_s, loaded


def _leading(keys: set[bytes]) -> int:
    return next((number for number, key in enumerate(KEYS) if key not in keys), len(KEYS))


def test_what_all_are_taken_to_have_nobody_has_to_load() -> None:
    """Beginnings that too few instances have (spread_shared)."""
    index = PrefixIndex()
    index.stored("a", KEYS[:8], LOWER)
    match, column = index.match(KEYS), index.column(["a", "b"])
    costs = PrefillCosts([CostModel(CostHint()) for _ in range(2)])
    views = PrefillViews(index.lengths(match, column), np.zeros(2), costs, index.lower(match, column))
    levelled = views.at_least(3)
    assert levelled.local_blocks.tolist() == [8, 3]
    assert [(run.start, run.end) for run in levelled.lower] == [(3, 8)]
    assert views.at_least(8).lower == []


def test_prompts_in_many_pieces_are_judged_by_some_of_their_ends() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mooncake_core.conductor.cuts.MOST_BORDERS", 2)
        mixed = {key: (LOWER if number % 2 else DRAM) for number, key in enumerate(KEYS)}
        scores = score(CacheAware, {"a": mixed}, ["a"])
        assert scores.of(0, "a").loaded_blocks == 6
        assert scores.transfer_s.tolist() == pytest.approx([6 * 0.05])
