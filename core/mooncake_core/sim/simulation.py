"""One run: requests arrive at a cluster, instances come and go as planned, and the load is looked at now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from mooncake_core.sim.job import Job
from mooncake_core.sim.records import Records
from mooncake_core.sim.series import Sample
from mooncake_core.sim.timeline import Timeline


class Cluster(Protocol):
    """What takes requests."""

    def arrive(self, job: Job) -> None:
        """A request comes."""

    def sample(self, rejected: int) -> Sample:
        """Its load now."""

    def busy_s(self) -> dict[str, float]:
        """Seconds that instances have computed, by name; of a pool's, their mean."""

    def report(self) -> None:
        """Instances tell their scheduler how much they have to do."""


class Simulation:
    """Feeds jobs, which come ordered by time, and keeps a record of each when it has ended."""

    def __init__(
        self,
        timeline: Timeline,
        jobs: Iterator[Job],
        *,
        report_interval_s: float,
        sample_interval_s: float,
        progress: Callable[[Records], None] = lambda records: None,
    ) -> None:
        """`progress` hears of each request that has ended: the latest of the records."""
        self.timeline = timeline
        self.records = Records()
        self.samples: list[Sample] = []
        self.num_arrived = 0
        self.ended_at = 0.0
        """When the last request had ended."""
        self.busy_s: dict[str, float] = {}
        """Instance, or pool → seconds of computing."""
        self._jobs = jobs
        self._more = True
        self._rejected = 0
        self._report_interval_s = report_interval_s
        self._sample_interval_s = sample_interval_s
        self._progress = progress

    def run(self, cluster: Cluster) -> None:
        """Until all requests have ended."""
        self._feed(cluster)
        if self._report_interval_s:
            self._report(cluster)
        if self._sample_interval_s:
            self._sample(cluster)
        self.timeline.run()
        self.busy_s = cluster.busy_s()
        missing = self.num_arrived - len(self.records)
        if missing or self._more:
            raise AssertionError(f"{missing} requests never ended")

    def ended(self, job: Job) -> None:
        """A request has ended, one way or the other."""
        self.records.add(job)
        self._rejected += job.outcome != "completed"
        self.ended_at = self.timeline.now
        self._progress(self.records)

    @property
    def is_over(self) -> bool:
        return not self._more and len(self.records) == self.num_arrived

    def _feed(self, cluster: Cluster) -> None:
        job = next(self._jobs, None)
        if job is None:
            self._more = False
        else:
            self.timeline.at(job.arrived_at, self._arrive, cluster, job)

    def _arrive(self, cluster: Cluster, job: Job) -> None:
        self.num_arrived += 1
        self._feed(cluster)
        cluster.arrive(job)

    def _report(self, cluster: Cluster) -> None:
        if not self.is_over:
            cluster.report()
            self.timeline.at(self.timeline.now + self._report_interval_s, self._report, cluster)

    def _sample(self, cluster: Cluster) -> None:
        if not self.is_over:
            self.samples.append(cluster.sample(self._rejected))
            self.timeline.at(self.timeline.now + self._sample_interval_s, self._sample, cluster)
