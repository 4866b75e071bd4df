"""mooncake bench trace: a trace through simulated systems, side by side."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

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


class TraceReport(Struct, frozen=True, kw_only=True):
    """Everything of a run."""

    trace: dict[str, Any]
    systems: list[SystemReport]


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

    def execute(self, progress: Callable[[int], None] = lambda ended: None) -> TraceReport:
        """Runs the systems one after the other."""
        config = self.config
        trace = {"path": str(self._trace), "requests": self.num_requests, "speed": config.speed, "seed": config.seed}
        done = itertools.count(1)
        return TraceReport(
            trace=trace, systems=[self._serve(system, lambda: progress(next(done))) for system in self.systems]
        )

    def _serve(self, system: SystemSettings, progress: Callable[[], None]) -> SystemReport:
        cpu, wall = time.process_time(), time.monotonic()
        simulation = simulate(self._setup, system, self._jobs(), progress)
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

    def _jobs(self) -> Iterator[Job]:
        return itertools.islice(read_jobs(self._trace, speed=self.config.speed), self._limit)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _chosen(systems: Sequence[SystemSettings], names: Sequence[str]) -> list[SystemSettings]:
    known = {system.name: system for system in systems}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no system called {unknown[0]}; the configuration has {', '.join(known)}")
    return [known[name] for name in names] if names else list(systems)
