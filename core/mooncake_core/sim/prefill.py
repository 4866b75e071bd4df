"""A simulated prefill instance: one prompt after the other, the urgent ones first, while prefixes load and KV leaves by layer."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

from mooncake_core.sim.job import Job
from mooncake_core.sim.pipeline import Pipeline
from mooncake_core.sim.timeline import Timeline


class Loaded(NamedTuple):
    """A prefix that an instance has, or is about to have."""

    matched_tokens: int
    first_layer_at: float
    """From when computation can go on, if each layer's KV comes in time."""
    last_layer_at: float


class PrefillInstance:
    """The queue of an instance and what it computes. The cluster loads prefixes, and is told of beginnings and ends."""

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        pipeline: Pipeline,
        *,
        num_layers: int,
        load: Callable[[PrefillInstance, Job], None],
        begun: Callable[[PrefillInstance, Job, float, float], None],
        ended: Callable[[PrefillInstance, Job, float], None],
    ) -> None:
        """`load` ends in a call of `loaded`; `begun` and `ended` hear the duration of the computation as well, `begun`
        after the time at which it will end."""
        self.name = name
        self._timeline = timeline
        self._pipeline = pipeline
        self._num_layers = num_layers
        self._load = load
        self._begun = begun
        self._ended = ended
        self._queue: list[tuple[int, int, Job]] = []
        self._order = 0
        self._loading: Job | None = None
        self._running: dict[Job, float] = {}
        """Job → seconds of computation."""
        self._waking_at = 0.0
        self.busy_s = 0.0

    @property
    def stages(self) -> int:
        """Members of the group that computes as this instance."""
        return self._pipeline.stages

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def num_running(self) -> int:
        return len(self._running) + (self._loading is not None)

    def backlog_s(self) -> float:
        """Until what runs and waits here is computed, if nothing has to be loaded."""
        waiting_s = sum(self._pipeline.duration_s(job.context_tokens, job.matched_tokens) for _, _, job in self._queue)
        return max(0.0, self._pipeline.free_at - self._timeline.now) + waiting_s / self._pipeline.stages

    def queued_tokens(self) -> int:
        """Of the prompts that wait."""
        return sum(job.context_tokens for _, _, job in self._queue)

    def submit(self, job: Job) -> None:
        """A request is to be prefilled here."""
        heapq.heappush(self._queue, (job.priority, self._order, job))
        self._order += 1
        self._take_next()

    def loaded(self, job: Job, prefix: Loaded) -> None:
        """The prefix of the job that loads is there, or it is known when it will be."""
        if job is not self._loading:
            return  # it was given up meanwhile
        self._loading = None
        duration_s = self._pipeline.duration_s(job.context_tokens, prefix.matched_tokens)
        # The last layer's computation begins when its KV has come, the first one's when its own has.
        begin = max(prefix.first_layer_at, prefix.last_layer_at - duration_s * (1 - 1 / self._num_layers))
        end = self._pipeline.run(job.context_tokens, prefix.matched_tokens, begin)
        self._running[job] = duration_s
        self._begun(self, job, end, duration_s)
        self._timeline.at(end, self._finish, job, job.attempt)
        self._take_next()

    def give_up(self, job: Job) -> None:
        """A request is not wanted any more: it does not begin; what is computed already goes on, for nobody."""
        if job is self._loading:
            self._loading = None
            self._take_next()
        self._queue = [entry for entry in self._queue if entry[2] is not job]
        heapq.heapify(self._queue)
        self._running.pop(job, None)

    def fail(self) -> list[Job]:
        """The instance is gone; what it had to do."""
        lost = [job for _, _, job in sorted(self._queue)] + list(self._running)
        if self._loading is not None:
            lost.append(self._loading)
        self._queue, self._loading, self._running = [], None, {}
        self._pipeline.clear()
        return lost

    def _take_next(self) -> None:
        if self._loading is not None or not self._queue:
            return
        if self._pipeline.free_at > self._timeline.now:
            self._wake_at(self._pipeline.free_at)
            return
        _, _, job = heapq.heappop(self._queue)
        self._loading = job
        self._load(self, job)

    def _wake_at(self, time: float) -> None:
        if time != self._waking_at:
            self._waking_at = time
            self._timeline.at(time, self._take_next)

    def _finish(self, job: Job, attempt: int) -> None:
        if job.attempt != attempt or job not in self._running:
            return
        duration_s = self._running.pop(job)
        self.busy_s += duration_s / self._pipeline.stages
        self._ended(self, job, duration_s)
