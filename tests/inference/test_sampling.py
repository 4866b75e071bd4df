"""Sampling on the CPU: the distribution that was asked for, and the same token in any company."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import torch

from mooncake_core.inference.counter import uniform
from mooncake_core.inference.torch import sampling
from mooncake_core.wire.messages.serving import Sampling

pytestmark = pytest.mark.model
KINDS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_p=0.9),
    Sampling(temperature=1.0, top_k=40),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=0.9, top_k=300, top_p=0.8),
    Sampling(temperature=2.0, top_p=0.999),
    Sampling(temperature=1e-30, top_p=0.5),
    Sampling(temperature=1e-40),
    Sampling(temperature=1.0, top_k=10_000_000, top_p=0.3),
]


def logits(rows: int, vocabulary: int, *, seed: int = 0, coarse: bool = False) -> torch.Tensor:
    """As a model's: some tokens stand out. `coarse` ones have many equal values, as those of bfloat16 do."""
    made = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    return (made * 2).round() / 2 if coarse else made


def kept(row: torch.Tensor, asked: Sampling) -> dict[int, float]:
    """Token to probability, by the definition: sort everything, take top_k, of that top_p."""
    order = sorted(range(len(row)), key=lambda token: (-float(row[token]), token))
    order = order[: asked.top_k or None]
    weights = torch.softmax(row[order].double() / asked.temperature, -1).tolist()
    if asked.top_p < 1:
        reached, count = 0.0, 0
        while reached < asked.top_p:
            reached += weights[count]
            count += 1
        order, weights = order[:count], weights[:count]
    return {token: weight / sum(weights) for token, weight in zip(order, weights, strict=True)}


@pytest.mark.parametrize("coarse", [False, True])
def test_a_token_does_not_depend_on_the_rows_beside_it(coarse: bool) -> None:
    draw = random.Random(1)
    values = logits(60, 2000, coarse=coarse)
    samplings = [draw.choice(KINDS) for _ in range(60)]
    positions = [draw.randrange(1000) for _ in range(60)]
    alone = [
        sampling.choose(values[row : row + 1], [samplings[row]], [positions[row]])[0] for row in range(len(samplings))
    ]
    assert sampling.choose(values, samplings, positions) == alone
    rows = draw.sample(range(60), 60)
    shuffled = sampling.choose(values[rows], [samplings[row] for row in rows], [positions[row] for row in rows])
    assert shuffled == [alone[row] for row in rows]


@pytest.mark.parametrize("coarse", [False, True])
def test_how_many_candidates_are_looked_at_changes_nothing(coarse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    values = logits(len(KINDS) * 20, 600, coarse=coarse)
    samplings, positions = KINDS * 20, list(range(len(KINDS) * 20))
    found = []
    for count in (1, 3, 64, 256, 600):
        monkeypatch.setattr(sampling, "CANDIDATES", count)
        found.append(sampling.choose(values, samplings, positions))
    assert all(tokens == found[0] for tokens in found)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("asked", [kind for kind in KINDS if kind.temperature > 1e-3], ids=str)
def test_tokens_come_as_often_as_their_probability_says(asked: Sampling, coarse: bool) -> None:
    row = logits(1, 500, seed=3, coarse=coarse)
    count = 2000
    tokens = Counter(sampling.choose(row.expand(count, -1), [asked] * count, list(range(count))))
    expected = kept(row[0], asked)
    assert set(tokens) <= set(expected)
    # Five standard deviations at most, and more where a few are many.
    for token, probability in expected.items():
        assert abs(tokens[token] - count * probability) <= 5 * (count * probability * (1 - probability)) ** 0.5 + 3


def test_a_cut_row_is_the_inverse_of_its_cumulative_distribution() -> None:
    row = logits(1, 500, seed=3)
    asked = Sampling(temperature=0.9, top_k=100, top_p=0.95, seed=5)
    expected = kept(row[0], asked)
    for position in range(50):
        sums = zip(expected, itertools.accumulate(expected.values()), strict=True)
        token = next(token for token, reached in sums if reached > uniform(5, position))
        assert sampling.choose(row, [asked], [position]) == [token]


def test_the_vocabulary_is_sorted_only_where_the_likeliest_tokens_do_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    likeliest = sampling._likeliest
    monkeypatch.setattr(sampling, "_likeliest", lambda scaled, count: counts.append(count) or likeliest(scaled, count))
    peaked, flat = logits(4, 5000) * 3, torch.zeros(1, 5000)
    asked = [Sampling(top_p=0.9), Sampling(top_k=50), Sampling(), Sampling(top_k=90, top_p=0.9)]
    sampling.choose(peaked, asked, [1, 2, 3, 4])
    assert counts == [sampling.CANDIDATES]
    counts.clear()
    (token,) = sampling.choose(flat, [Sampling(top_p=0.5)], [7])
    assert counts == [256, 4096, 5000]
    assert token == pytest.approx(uniform(0, 7) * 2500, abs=1)
