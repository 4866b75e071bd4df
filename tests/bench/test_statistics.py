"""The benchmark's own arithmetic."""

from __future__ import annotations

import random

from mooncake_core.bench.statistics import median_ratio, quantiles, request_tbt


def test_quantiles_are_samples() -> None:
    found = quantiles([float(number) for number in range(100, 0, -1)])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.p90, found.p99) == (100, 50.5, 50, 90, 99)
    single = quantiles([3.0])
    assert single is not None
    assert (single.p50, single.p99) == (3.0, 3.0)
    assert quantiles([]) is None


def test_tbt_is_the_mean_of_the_slowest_tenth() -> None:
    assert request_tbt([1.0] * 18 + [5.0, 7.0]) == 6.0
    assert request_tbt([2.0]) == 2.0
    assert request_tbt([]) is None


def test_a_ratio_is_the_median_over_pairs_and_its_interval_is_seeded() -> None:
    pairs = [(2.0 * slow, slow) for slow in (1.0, 5.0, 9.0)] + [(30.0, 3.0), (1.0, 1.0)]
    found = median_ratio(pairs, seed=3)
    assert found is not None
    assert (found.count, found.median) == (5, 2.0)
    assert 1.0 <= found.low <= 2.0 <= found.high <= 10.0
    assert median_ratio(pairs, seed=3) == found


def test_an_interval_of_equal_ratios_is_a_point_and_of_others_covers_the_truth() -> None:
    same = median_ratio([(3.0, 2.0)] * 10)
    assert same is not None
    assert (same.low, same.median, same.high) == (1.5, 1.5, 1.5)
    covered = 0
    for seed in range(50):
        draw = random.Random(seed)
        found = median_ratio([(draw.gauss(1.2, 0.1), 1.0) for _ in range(12)], seed)
        assert found is not None
        covered += found.low <= 1.2 <= found.high
    assert covered >= 42  # of 50; 95% would be 47


def test_a_pair_without_a_baseline_says_nothing() -> None:
    assert median_ratio([(1.0, 0.0)]) is None
    found = median_ratio([(1.0, 0.0), (3.0, 1.0)])
    assert found is not None
    assert (found.count, found.median) == (1, 3.0)
