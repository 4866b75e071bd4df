"""What a simulated system serves, and by which objectives: the trace of the command, or a workload of the YAML."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from mooncake_core.errors import UsageError
from mooncake_core.sim.generated import generate_jobs
from mooncake_core.sim.job import Job
from mooncake_core.sim.jobs import make_jobs
from mooncake_core.sim.load import Setup
from mooncake_core.sim.settings import SloSettings, SystemSettings, WorkloadSettings
from mooncake_core.sim.shapes import Costs
from mooncake_core.workload.trace import TraceSource


class TraceLoad:
    """Makes jobs, which are used up by a simulation, as often as they are asked for."""

    def __init__(
        self, setup: Setup, trace: TraceSource | None, systems: Sequence[SystemSettings], limit: int | None
    ) -> None:
        """
        Raises:
            UsageError: there is no trace, or nobody to serve it; or the trace cannot be read.
        """
        self._config = setup.config
        self._costs = setup.costs
        self._trace = trace
        self._limit = limit
        self._workloads = {workload.name: workload for workload in setup.config.workloads}
        without = [system.name for system in systems if not system.workload]
        if trace is None and without:
            raise UsageError(f"expected a TRACE: system {without[0]} has no workload in the configuration")
        if trace is not None and not without:
            raise UsageError(f"{trace}: nobody to serve it: the systems have workloads of their own; leave TRACE out")
        self._trace_requests = 0 if trace is None else sum(1 for _ in self._of_trace(trace, 1.0))

    def num_requests(self, system: SystemSettings) -> int:
        """That a system is to serve."""
        workload = self._workloads.get(system.workload)
        if workload is None:
            return self._trace_requests
        return workload.requests if self._limit is None else min(workload.requests, self._limit)

    def jobs(self, system: SystemSettings, *, seed: int, speed: float) -> Iterator[Job]:
        """For one run; they come `speed` times as fast."""
        workload = self._workloads.get(system.workload)
        if workload is not None:
            block_tokens = self._config.engine.block_tokens
            jobs = generate_jobs(workload, block_tokens=block_tokens, seed=seed, speed=speed)
            return itertools.islice(jobs, self._limit)
        assert self._trace is not None
        return self._of_trace(self._trace, speed)

    def rate(self, system: SystemSettings, seed: int) -> float:
        """Arrivals per second at speed 1, in the mean."""
        last = 0.0
        for job in self.jobs(system, seed=seed, speed=1.0):
            last = job.arrived_at
        return self.num_requests(system) / last if last else 0.0

    def slo(self, system: SystemSettings) -> SloSettings:
        """The objectives of what a system serves."""
        slo, workload = self._config.slo, self._workloads.get(system.workload)
        return slo if workload is None else _slo(slo, workload, self._costs)

    def describe(self, systems: Sequence[SystemSettings]) -> dict[str, Any]:
        """For reports."""
        config = self._config
        found: dict[str, Any] = {"path": str(self._trace or ""), "speed": config.speed, "seed": config.seed}
        found["requests"] = sum({system.workload: self.num_requests(system) for system in systems}.values())
        names = dict.fromkeys(system.workload for system in systems if system.workload)
        if names:
            found["workloads"] = [msgspec.structs.asdict(self._workloads[name]) for name in names]
        return found

    def _of_trace(self, trace: TraceSource, speed: float) -> Iterator[Job]:
        longest = self._config.longest_answer
        requests = itertools.islice(trace.read(), self._limit)
        for job in make_jobs(requests, block_tokens=self._config.engine.block_tokens, speed=speed):
            if longest is not None:
                job.output_tokens = min(job.output_tokens, longest)
            yield job


def _slo(slo: SloSettings, workload: WorkloadSettings, costs: Costs) -> SloSettings:
    """Relative to a lone request, whose shared prefix is in place (technical report, section 8)."""
    prompt, answer = workload.input_tokens, workload.output_tokens
    ttft, tbt = slo.ttft, slo.tbt
    if workload.ttft_factor is not None:
        ttft = workload.ttft_factor * costs.prefill_s(prompt, int(prompt * workload.shared))
    if workload.tbt_factor is not None:
        tbt = workload.tbt_factor * costs.step_s(1, prompt + answer // 2)
    return msgspec.structs.replace(slo, ttft=ttft, tbt=tbt)
