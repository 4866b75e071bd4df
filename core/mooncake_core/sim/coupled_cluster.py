"""The baseline: instances that do prefill and decode, behind a router that knows how many requests each of them has."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, Literal

import numpy as np

from mooncake_core.sim.coupled import CoupledInstance
from mooncake_core.sim.job import Job
from mooncake_core.sim.series import Sample, mean
from mooncake_core.sim.timeline import Timeline

Router = Literal["least-requests", "round-robin", "random"]
RETRY_S: Final = 2.0
PATIENCE_S: Final = 20.0


class CoupledCluster:
    """Hands requests to instances. `ended` hears of each job once, with its outcome."""

    def __init__(
        self,
        timeline: Timeline,
        router: Router,
        rng: np.random.Generator,
        *,
        new_instance: Callable[[str, Callable[[Job], None]], CoupledInstance],
        slo_s: tuple[float, float],
        ended: Callable[[Job], None],
    ) -> None:
        """`slo_s`: of the time to first token and of that between tokens."""
        self.timeline = timeline
        self.instances: dict[str, CoupledInstance] = {}
        self._router = router
        self._random = rng
        self._new_instance = new_instance
        self._ttft_slo_s, self._tbt_slo_s = slo_s
        self._ended = ended
        self._turn = itertools.count()

    def join(self, name: str) -> None:
        """An instance is there."""
        if name not in self.instances:
            self.instances[name] = self._new_instance(name, self._complete)

    def fail(self, name: str) -> None:
        """An instance is gone; what it had is begun anew elsewhere."""
        instance = self.instances.pop(name, None)
        if instance is None:
            return
        lost = instance.fail()
        for job in lost:
            job.attempt += 1
            job.lost_at = [*job.lost_at, name]
            self.arrive(job)

    def arrive(self, job: Job) -> None:
        """A request comes, or comes again after its instance was lost."""
        if not self.instances:
            self._wait(job)
            return
        instance = self._choose()
        needed, capacity = job.prompt_tokens + job.output_tokens, instance.memory.capacity_tokens
        if needed > capacity:
            job.outcome, job.stage = "rejected", "arrival"
            job.reason = f"{needed} tokens of prompt and answer exceed the KV memory of {capacity} tokens"
            self._end(job)
            return
        job.waiting_since = -1.0
        job.prefill = job.decode = instance.name
        job.dispatched = True
        instance.submit(job)

    def report(self) -> None:
        """The router knows what it needs."""

    def sample(self, rejected: int) -> Sample:
        """The load now, over the objectives."""
        instances = self.instances.values()
        return Sample(
            at_s=self.timeline.now,
            waiting=sum(one.num_waiting for one in instances),
            decoding=sum(one.num_running for one in instances),
            prefill_load=mean([one.backlog_s() for one in instances]) / self._ttft_slo_s,
            decode_load=mean([one.step_s for one in instances]) / self._tbt_slo_s,
            network_load=0.0,
            rejected=rejected,
            pool_blocks=sum(one.memory.num_cached for one in instances),
        )

    def busy_s(self) -> dict[str, float]:
        """Time spent computing, by instance, and the mean of all that are there."""
        found = {name: instance.busy_s for name, instance in self.instances.items()}
        return {"instances": mean(list(found.values())), **found}

    def _choose(self) -> CoupledInstance:
        instances = list(self.instances.values())
        turn = next(self._turn)
        if self._router == "random":
            return instances[int(self._random.integers(len(instances)))]
        if self._router == "round-robin":
            return instances[turn % len(instances)]
        fewest = min(instance.num_outstanding for instance in instances)
        equal = [instance for instance in instances if instance.num_outstanding == fewest]
        return equal[turn % len(equal)]

    def _wait(self, job: Job) -> None:
        now = self.timeline.now
        job.waiting_since = now if job.waiting_since < 0 else job.waiting_since
        if now + RETRY_S - job.waiting_since <= PATIENCE_S:
            self.timeline.at(now + RETRY_S, self.arrive, job)
            return
        job.outcome, job.stage, job.reason = "unavailable", "arrival", "no instance is there"
        self._end(job)

    def _complete(self, job: Job) -> None:
        job.outcome = "completed"
        self._end(job)

    def _end(self, job: Job) -> None:
        job.ended_at = self.timeline.now
        self._ended(job)
