"""Numbers of many instances side by side."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mooncake_core.conductor.tables import smallest


@pytest.mark.parametrize("within", [0.0, 0.05])
@pytest.mark.parametrize("number", [2, 8, 100])
def test_ranks_of_a_policy_may_be_negative(number: int, within: float) -> None:
    ranks = -np.arange(1.0, number + 1)
    assert smallest(ranks, random.Random(0), within=within) == number - 1


@pytest.mark.parametrize("number", [4, 100])
def test_any_of_those_that_do_equally_well_is_taken(number: int) -> None:
    ranks = np.full(number, 2.0)
    ranks[1], ranks[3] = 1.0, 1.04
    rng = random.Random(0)
    assert {smallest(ranks, rng) for _ in range(50)} == {1}
    assert {smallest(ranks, rng, within=0.05) for _ in range(50)} == {1, 3}
