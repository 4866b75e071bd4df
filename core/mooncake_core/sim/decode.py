"""A simulated decode instance: continuous batching within its KV memory."""

from __future__ import annotations

import math
from collections.abc import Callable

from mooncake_core.sim.batch import Batch
from mooncake_core.sim.job import Job
from mooncake_core.sim.shapes import Costs
from mooncake_core.sim.timeline import Timeline


class DecodeInstance:
    """Requests join at the next border of steps after their KV has arrived, and leave with their last token."""

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        costs: Costs,
        *,
        num_blocks: int,
        ended: Callable[[DecodeInstance, Job], None],
    ) -> None:
        self.name = name
        self.num_blocks = num_blocks
        self._timeline = timeline
        self._ended = ended
        self._batch: Batch[Job] = Batch(costs.step_s)
        self._joining: list[Job] = []
        self._reserved: dict[str, int] = {}
        """Request → blocks held for it."""
        self._version = 0
        self._busy_since = 0.0
        self._busy_s = 0.0

    @property
    def num_running(self) -> int:
        return len(self._batch) + len(self._joining)

    @property
    def context_tokens(self) -> int:
        """Of the batch, at its latest change."""
        return self._batch.context_tokens

    @property
    def step_s(self) -> float:
        """How long its steps take, at the latest change of the batch."""
        return self._batch.step_now_s()

    @property
    def free_blocks(self) -> int:
        return self.num_blocks - sum(self._reserved.values())

    def busy_s(self) -> float:
        """Time with a batch, until now."""
        return self._busy_s + (self._timeline.now - self._busy_since if len(self._batch) else 0.0)

    def reserve(self, request_id: str, num_blocks: int) -> bool:
        """Holds memory for a request, if there is enough."""
        if num_blocks > self.free_blocks:
            return False
        self._reserved[request_id] = num_blocks
        return True

    def release(self, request_id: str) -> None:
        """Nothing is held for a request any more."""
        self._reserved.pop(request_id, None)

    def submit(self, job: Job) -> None:
        """The KV of a request is here, and it wants more tokens."""
        self._joining.append(job)
        now = self._timeline.now
        border = self._batch.next_border(now)
        if border > now:
            self._look_at(border)
        else:
            self._change()

    def give_up(self, job: Job) -> None:
        """A request is not wanted any more; where a step runs, it ends first."""
        if job in self._joining:
            self._joining.remove(job)

    def fail(self) -> list[Job]:
        """The instance is gone; the requests that ran here, with the tokens they have got."""
        now = self._timeline.now
        lost = [*self._batch.sequences(), *self._joining]
        border = self._batch.last_border(now)
        for job in self._batch.sequences():
            job.take(self._batch.leave(job, border), border)
        self._batch = Batch(self._batch.step_s)
        self._joining = []
        self._reserved.clear()
        self._version += 1
        self._busy_s, self._busy_since = self._busy_s + now - self._busy_since if lost else self._busy_s, now
        return lost

    def _look_at(self, time: float) -> None:
        self._version += 1
        if time != math.inf:
            self._timeline.at(time, self._look, self._version)

    def _look(self, version: int) -> None:
        if version == self._version:
            self._change()

    def _change(self) -> None:
        """A border of steps: who has all its tokens leaves, who waits joins."""
        now = self._timeline.now
        was_busy = len(self._batch) > 0
        done = self._batch.finished(now)
        for job in done:
            job.take(self._batch.leave(job, now), now)
        for job in self._joining:
            self._batch.join(job, job.context_tokens, job.missing_tokens, job.last_token_at, now)
        self._joining.clear()
        if was_busy:
            self._busy_s += now - self._busy_since
        self._busy_since = now
        self._look_at(self._batch.next_finish())
        for job in done:
            self._ended(self, job)
