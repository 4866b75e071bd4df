"""mooncake bench trace: a trace through simulated systems, side by side."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from mooncake_core.bench.capacity import Capacity, find_capacity
from mooncake_core.bench.trace_load import TraceLoad
from mooncake_core.errors import UsageError
from mooncake_core.sim.load import Setup
from mooncake_core.sim.records import Records
from mooncake_core.sim.settings import SystemSettings
from mooncake_core.sim.summary import SystemSummary, summarise
from mooncake_core.sim.systems import simulate
from mooncake_core.workload.trace import TraceSource


class SystemReport(SystemSummary, frozen=True, kw_only=True):
    """A system's results, and what it took to simulate them."""

    cpu_s: float
    wall_s: float
    peak_rss_bytes: int
    """Of this process until then."""


class SeedResult(Struct, frozen=True, kw_only=True):
    """What a system's mean time to first token and goodput are with another seed."""

    seed: int
    name: str
    ttft_s: float
    goodput_ratio: float
    hit_ratio: float
    prefill_gpu_s: float


class TraceReport(Struct, frozen=True, kw_only=True):
    """Everything of a run that goes into its JSON."""

    trace: dict[str, Any]
    systems: list[SystemReport]
    """With the first seed."""
    seeds: list[SeedResult] = []
    capacities: list[Capacity] = []


@dataclass(frozen=True, slots=True)
class TraceResult:
    """A report, and what it was made of."""

    report: TraceReport
    records: dict[str, Records] = field(default_factory=dict)
    """System → each of its requests."""


class TraceRun:
    """A trace, or workloads, and the systems that are to serve them."""

    def __init__(
        self,
        setup: Setup,
        trace: TraceSource | None,
        *,
        names: Sequence[str] = (),
        speed: float | None = None,
        seed: int | None = None,
        ttft_s: float | None = None,
        tbt_s: float | None = None,
        limit: int | None = None,
    ) -> None:
        """What is given counts instead of what the configuration says.

        Raises:
            UsageError: the trace cannot be read or is missing, or there is no system of such a name.
        """
        config = setup.config
        slo = msgspec.structs.replace(config.slo, **_given(ttft=ttft_s, tbt=tbt_s))
        self.config = msgspec.structs.replace(config, slo=slo, **_given(speed=speed, seed=seed))
        self._setup = replace(setup, config=self.config)
        self.systems = _chosen(config.systems, names)
        self._load = TraceLoad(self._setup, trace, self.systems, limit)
        self.num_requests = sum(self._load.num_requests(system) for system in self.systems)
        """Of one run of each system."""

    def execute(self, progress: Callable[[int], None] = lambda ended: None, *, seeds: int = 1) -> TraceResult:
        """Runs the systems one after the other, with so many seeds from the configuration's on."""
        config = self.config
        done = itertools.count(1)
        reports: list[SystemReport] = []
        records: dict[str, Records] = {}
        results: list[SeedResult] = []
        for seed in range(config.seed, config.seed + seeds):
            for system in self.systems:
                report, found = self._serve(system, seed, lambda _: progress(next(done)))
                results.append(_of_seed(seed, report))
                if seed == config.seed:
                    reports.append(report)
                    records[system.name] = found
        trace = self._load.describe(self.systems)
        whole = TraceReport(trace=trace, systems=reports, seeds=results if seeds > 1 else [])
        return TraceResult(whole, records)

    def capacities(self, share: float) -> list[Capacity]:
        """How much faster the load may come until less than a share of requests meets the objectives, for each limit of the
        time between tokens that the configuration has."""
        found = []
        for system in self.systems:
            slo = self._load.slo(system)
            limits_s = slo.thresholds or [slo.tbt]
            rate = self._load.rate(system, self.config.seed)
            serve = partial(self._goodput_ratios, system, limits_s)
            found.append(find_capacity(system.name, share, limits_s, rate, serve))
        return found

    def _goodput_ratios(self, system: SystemSettings, limits_s: Sequence[float], speed: float) -> list[float]:
        setup = self._setup_of(system, self.config.seed)
        slo = msgspec.structs.replace(setup.config.slo, thresholds=list(limits_s))
        setup = replace(setup, config=msgspec.structs.replace(setup.config, slo=slo, sample_interval=0.0))
        simulation = simulate(setup, system, self._load.jobs(system, seed=self.config.seed, speed=speed))
        return [entry.goodput_ratio for entry in summarise(setup.config, system, simulation).thresholds]

    def _serve(
        self, system: SystemSettings, seed: int, progress: Callable[[Records], None]
    ) -> tuple[SystemReport, Records]:
        cpu, wall = time.process_time(), time.monotonic()
        setup = self._setup_of(system, seed)
        jobs = self._load.jobs(system, seed=seed, speed=self.config.speed)
        simulation = simulate(setup, system, jobs, progress)
        report = SystemReport(
            **msgspec.structs.asdict(summarise(setup.config, system, simulation)),
            cpu_s=time.process_time() - cpu,
            wall_s=time.monotonic() - wall,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        return report, simulation.records

    def _setup_of(self, system: SystemSettings, seed: int) -> Setup:
        config = msgspec.structs.replace(self.config, seed=seed, slo=self._load.slo(system))
        return replace(self._setup, config=config)


def _of_seed(seed: int, summary: SystemSummary) -> SeedResult:
    return SeedResult(
        seed=seed,
        name=summary.name,
        ttft_s=summary.ttft_s.mean if summary.ttft_s else 0.0,
        goodput_ratio=summary.goodput_ratio,
        hit_ratio=summary.hit_ratio.tokens,
        prefill_gpu_s=summary.prefill_gpu_s,
    )


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _chosen(systems: Sequence[SystemSettings], names: Sequence[str]) -> list[SystemSettings]:
    known = {system.name: system for system in systems}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no system called {unknown[0]}; the configuration has {', '.join(known)}")
    return [known[name] for name in names] if names else list(systems)
