"""Loads made by a seed: what they have in common with what they are named after."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from mooncake_core.workload.analysis import analyse
from mooncake_core.workload.generators import REPORT_INPUTS, Arrivals, Families, Sessions, generate, report
from mooncake_core.workload.request import TraceRequest


def make(load: Families | Sessions, arrivals: Arrivals | None = None, **more: int) -> list[TraceRequest]:
    settings = {"requests": 400, "block_tokens": 64, "seed": 1, **more}
    return list(generate(load, arrivals or Arrivals(), **settings))


@pytest.mark.parametrize("load", [Families(), Families(skew=1.0, spread=0.4), Sessions(), report(16_384)])
def test_a_seed_makes_the_same_load_and_another_one_another(load: Families | Sessions) -> None:
    made = make(load)
    assert made == make(load)
    assert made != make(load, seed=2)
    assert make(load, requests=50) == made[:50]
    assert all(earlier.arrival_s <= later.arrival_s for earlier, later in pairwise(made))
    assert all(len(one.block_ids) == -(-one.input_tokens // 64) for one in made)


@pytest.mark.parametrize(("kind", "variation"), [("poisson", 1.0), ("bursty", 3.0)])
@pytest.mark.parametrize("load", [Families(), Sessions(think_s=5.0)])
def test_rate_and_burstiness(kind: str, variation: float, load: Families | Sessions) -> None:
    arrivals = Arrivals(kind=kind, rate=2.0, burstiness=3.0)  # type: ignore[arg-type]
    made = make(load, arrivals, requests=8000)
    assert made[-1].arrival_s == pytest.approx(4000, rel=0.1)
    if isinstance(load, Families):
        gaps = np.diff([one.arrival_s for one in made])
        assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.15)


@pytest.mark.parametrize("tokens", REPORT_INPUTS)
def test_the_reports_data_has_half_of_each_prompt_cached(tokens: int) -> None:
    made = make(report(tokens), block_tokens=512, requests=200)
    assert {(one.input_tokens, one.output_tokens) for one in made} == {(tokens, 512)}
    found = analyse(made).unbounded.tokens
    assert found == pytest.approx(0.5 * (200 - 16) / 200)  # all but the first one of each family


def test_families_share_their_prefix_and_popular_ones_come_more_often() -> None:
    made = make(Families(input_tokens=1024, shared=0.25, families=4, skew=2.0))
    prefixes = Counter(one.block_ids[:4] for one in made)
    assert len(prefixes) == 4
    assert prefixes.most_common(1)[0][1] > len(made) / 2
    own = [name for one in made for name in one.block_ids[4:]]
    assert len(set(own)) == len(own)
    assert not {name for prefix in prefixes for name in prefix} & set(own)


def test_lengths_spread_around_their_mean() -> None:
    made = make(Families(input_tokens=4000, output_tokens=200, spread=0.5), requests=5000)
    assert np.mean([one.input_tokens for one in made]) == pytest.approx(4000, rel=0.05)
    assert np.log([one.input_tokens for one in made]).std() == pytest.approx(0.5, rel=0.05)


def test_turns_begin_with_all_that_was_said() -> None:
    made = make(Sessions(system_tokens=200, turns=5.0, think_s=3.0), requests=2000)
    latest: dict[str, TraceRequest] = {}
    for turn in made:
        assert turn.session is not None
        assert turn.block_ids[:3] == (0, 1, 2)  # the system's prompt, of all
        before = latest.get(turn.session)
        if before is not None:
            assert turn.input_tokens > before.input_tokens + before.output_tokens
            full = before.input_tokens // 64
            assert turn.block_ids[:full] == before.block_ids[:full]
            assert turn.block_ids[full:][:1] != before.block_ids[full:]
        latest[turn.session] = turn
    turns = Counter(turn.session for turn in made)
    assert 3 < np.mean(list(turns.values())) < 7
    assert len({name for one in latest.values() for name in one.block_ids[3:]}) == sum(
        len(one.block_ids[3:]) for one in latest.values()
    )  # sessions share nothing else
