"""mooncake bench trace: a trace through simulated systems, side by side."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from mooncake_core.bench.capacity import Capacity, find_capacity
from mooncake_core.errors import UsageError
from mooncake_core.sim.job import Job
from mooncake_core.sim.jobs import read_jobs
from mooncake_core.sim.load import Setup
from mooncake_core.sim.settings import SystemSettings
from mooncake_core.sim.summary import SystemSummary, summarise
from mooncake_core.sim.systems import simulate


class SystemReport(Struct, frozen=True, kw_only=True):
    """A system's results, and what it took to simulate them."""

    summary: SystemSummary
    ttfts_s: list[float]
    """Of completed requests, in the order in which they ended."""
    tbts_s: list[float]
    cpu_s: float
    wall_s: float
    peak_rss_bytes: int


class SeedResult(Struct, frozen=True, kw_only=True):
    """What a system's mean time to first token and goodput are with another seed."""

    seed: int
    name: str
    ttft_s: float
    goodput_ratio: float
    hit_ratio: float
    prefill_gpu_s: float


class TraceReport(Struct, frozen=True, kw_only=True):
    """Everything of a run."""

    trace: dict[str, Any]
    systems: list[SystemReport]
    """With the first seed."""
    seeds: list[SeedResult] = []
    capacities: list[Capacity] = []


class TraceRun:
    """A trace and the systems that are to serve it."""

    def __init__(
        self,
        setup: Setup,
        trace: Path,
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
            UsageError: the trace cannot be read, or there is no system of such a name.
        """
        config = setup.config
        slo = msgspec.structs.replace(config.slo, **_given(ttft=ttft_s, tbt=tbt_s))
        self.config = msgspec.structs.replace(config, slo=slo, **_given(speed=speed, seed=seed))
        self._setup = replace(setup, config=self.config)
        self._trace = trace
        self._limit = limit
        self.systems = _chosen(config.systems, names)
        self.num_requests = sum(1 for _ in self._jobs())

    def execute(self, progress: Callable[[int], None] = lambda ended: None, *, seeds: int = 1) -> TraceReport:
        """Runs the systems one after the other, with so many seeds from the configuration's on."""
        config = self.config
        trace = {"path": str(self._trace), "requests": self.num_requests, "speed": config.speed, "seed": config.seed}
        done = itertools.count(1)
        reports: list[SystemReport] = []
        results: list[SeedResult] = []
        for seed in range(config.seed, config.seed + seeds):
            for system in self.systems:
                report = self._serve(system, seed, config.speed, lambda: progress(next(done)))
                results.append(_of_seed(seed, report.summary))
                if seed == config.seed:
                    reports.append(report)
        return TraceReport(trace=trace, systems=reports, seeds=results if seeds > 1 else [])

    def capacities(self, share: float, limits_s: Sequence[float]) -> list[Capacity]:
        """How much faster the trace may come until less than a share of requests meets the objectives, for each limit of the
        time between tokens."""
        return [
            find_capacity(system.name, share, limits_s, partial(self._goodput_ratios, system, limits_s))
            for system in self.systems
        ]

    def _goodput_ratios(self, system: SystemSettings, limits_s: Sequence[float], speed: float) -> list[float]:
        slo = msgspec.structs.replace(self.config.slo, thresholds=list(limits_s))
        setup = replace(self._setup, config=msgspec.structs.replace(self.config, slo=slo, sample_interval=0.0))
        simulation = simulate(setup, system, self._jobs(speed))
        return [entry.goodput_ratio for entry in summarise(setup.config, system, simulation).thresholds]

    def _serve(self, system: SystemSettings, seed: int, speed: float, progress: Callable[[], None]) -> SystemReport:
        cpu, wall = time.process_time(), time.monotonic()
        setup = replace(self._setup, config=msgspec.structs.replace(self.config, seed=seed))
        simulation = simulate(setup, system, self._jobs(speed), progress)
        records = simulation.records
        completed = records.where("outcome", "completed")
        return SystemReport(
            summary=summarise(self.config, system, simulation),
            ttfts_s=records.column("ttft_s")[completed].tolist(),
            tbts_s=[value for value in records.column("tbt_s")[completed].tolist() if value >= 0],
            cpu_s=time.process_time() - cpu,
            wall_s=time.monotonic() - wall,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )

    def _jobs(self, speed: float = 1.0) -> Iterator[Job]:
        jobs = itertools.islice(read_jobs(self._trace, speed=speed), self._limit)
        longest = self.config.longest_answer
        return jobs if longest is None else _cut(jobs, longest)


def _of_seed(seed: int, summary: SystemSummary) -> SeedResult:
    return SeedResult(
        seed=seed,
        name=summary.name,
        ttft_s=summary.ttft_s.mean if summary.ttft_s else 0.0,
        goodput_ratio=summary.goodput_ratio,
        hit_ratio=summary.hit_ratio.tokens,
        prefill_gpu_s=summary.prefill_gpu_s,
    )


def _cut(jobs: Iterator[Job], longest: int) -> Iterator[Job]:
    for job in jobs:
        job.output_tokens = min(job.output_tokens, longest)
        yield job


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _chosen(systems: Sequence[SystemSettings], names: Sequence[str]) -> list[SystemSettings]:
    known = {system.name: system for system in systems}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no system called {unknown[0]}; the configuration has {', '.join(known)}")
    return [known[name] for name in names] if names else list(systems)
