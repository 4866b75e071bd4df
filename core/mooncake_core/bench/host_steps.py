"""What a host's own Python loses while bytes move beside it: an engine's step time under full load, against idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from mooncake_core.bench.statistics import Estimate, Quantiles, median_ratio, quantiles

Work = Callable[[], None]


class HostSteps(Struct, frozen=True, kw_only=True):
    """How long a step takes while nothing moves, while the engine moves blocks, and while its baseline does."""

    idle_s: Quantiles | None
    beside_engine_s: Quantiles | None
    beside_baseline_s: Quantiles | None
    slower: Estimate | None
    """Mean step beside the engine over the idle one."""
    baseline_slower: Estimate | None


class Host:
    """Makes steps of pure Python, which hold the interpreter lock all the time, as an engine's loop does between kernels."""

    def __init__(self, step_s: float) -> None:
        """`step_s`: of an idle step, about."""
        self._num_rounds = 1000
        taken_s = min(_timed(self._step) for _ in range(20))
        self._num_rounds = max(1, round(self._num_rounds * step_s / taken_s))

    def until(self, is_over: Callable[[], bool]) -> list[float]:
        """Makes steps, one at least; how long each took."""
        taken_s = [_timed(self._step)]
        while not is_over():
            taken_s.append(_timed(self._step))
        return taken_s

    def during(self, seconds: float) -> list[float]:
        """Makes steps for so long."""
        end = time.perf_counter() + seconds
        return self.until(lambda: time.perf_counter() >= end)

    def _step(self) -> None:
        total = 0
        for number in range(self._num_rounds):
            total += number


def sum_up(
    idle: Sequence[Sequence[float]], engine: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]], seed: int
) -> HostSteps:
    """Of measurements in turn: the steps of each."""
    return HostSteps(
        idle_s=_all(idle),
        beside_engine_s=_all(engine),
        beside_baseline_s=_all(baseline),
        slower=_slower(engine, idle, seed),
        baseline_slower=_slower(baseline, idle, seed),
    )


def _slower(loaded: Sequence[Sequence[float]], idle: Sequence[Sequence[float]], seed: int) -> Estimate | None:
    pairs = [(_mean(one), _mean(other)) for one, other in zip(loaded, idle, strict=True) if one and other]
    return median_ratio(pairs, seed)


def _mean(taken_s: Sequence[float]) -> float:
    return sum(taken_s) / len(taken_s)


def _all(measurements: Sequence[Sequence[float]]) -> Quantiles | None:
    return quantiles([taken_s for measurement in measurements for taken_s in measurement])


def _timed(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
