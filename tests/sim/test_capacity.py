"""Bisecting for the speed that a system can take, and the report over seeds."""

from __future__ import annotations

import pytest

from mooncake_core.bench.capacity import find_capacity


def test_the_largest_speed_that_is_served_is_found_for_each_limit() -> None:
    """At the first limit half is served up to 3, at the second up to 10; runs serve all limits at once."""
    tried: list[float] = []

    def serve(speed: float) -> list[float]:
        tried.append(speed)
        return [0.5 if speed <= 3.0 else 0.4, 0.5 if speed <= 10.0 else 0.4, 0.0, 1.0]

    found = find_capacity("system", 0.5, [0.1, 0.2, 0.3, 0.4], 2.0, serve)
    assert found.speeds[:2] == [pytest.approx(3.0, rel=0.03), pytest.approx(10.0, rel=0.03)]
    assert all(speed <= limit for speed, limit in zip(found.speeds, [3.0, 10.0], strict=False))
    assert found.speeds[2] == 0.0
    assert found.requests_per_s == [2 * speed for speed in found.speeds]
    assert found.speeds[3] >= 64.0
    assert len(tried) == len(set(tried))


def test_a_system_slower_than_the_trace_has_a_capacity_below_one() -> None:
    found = find_capacity("system", 0.9, [0.1], 1.0, lambda speed: [1.0 if speed <= 0.3 else 0.0])
    assert found.speeds == [pytest.approx(0.3, rel=0.03)]
