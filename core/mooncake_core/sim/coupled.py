"""A simulated instance that does prefill and decode, as vLLM does: continuous batching in which prompts go first, or, with
chunked prefill, each step takes the running sequences and a chunk of a prompt.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mooncake_core.sim.batch import Batch
from mooncake_core.sim.job import Job
from mooncake_core.sim.kv_memory import KVMemory
from mooncake_core.sim.shapes import Costs
from mooncake_core.sim.timeline import Timeline

WATERMARK: Final = 0.01
"""Of the KV memory: stays free when a prompt is admitted, so that the sequences that run can grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoupledSettings:
    """How an instance makes its batches."""

    max_batch_tokens: int
    """Prompt tokens that are computed at once; a longer prompt is computed alone. With chunks: tokens of a step."""
    max_sequences: int
    chunked: bool


@dataclass(slots=True)
class _Prompt:
    """A prompt that is being computed."""

    job: Job
    done_tokens: int


class CoupledInstance:
    """One engine with its waiting requests, its batch and its KV memory."""

    def __init__(
        self,
        name: str,
        timeline: Timeline,
        costs: Costs,
        memory: KVMemory,
        settings: CoupledSettings,
        *,
        block_tokens: int,
        ended: Callable[[Job], None],
    ) -> None:
        self.name = name
        self.memory = memory
        self._timeline = timeline
        self._costs = costs
        self._settings = settings
        self._block_tokens = block_tokens
        self._ended = ended
        self._waiting: deque[Job] = deque()
        self._prompts: list[_Prompt] = []
        """Admitted, and not computed yet."""
        self._batch: Batch[Job] = Batch(costs.step_s)
        self._computing = False
        """Prompts are being computed, alone or in a step: nothing changes before that ends."""
        self._version = 0
        self.busy_s = 0.0
        self._busy_since = -1.0

    @property
    def num_outstanding(self) -> int:
        return len(self._waiting) + len(self._prompts) + len(self._batch)

    @property
    def num_running(self) -> int:
        return len(self._batch)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._prompts)

    @property
    def step_s(self) -> float:
        """How long its decode steps take, without prompts."""
        return self._batch.step_now_s()

    def backlog_s(self) -> float:
        """Until the prompts that wait are computed, if nothing is cached."""
        waiting_s = sum(self._costs.prefill_s(job.context_tokens, 0) for job in self._waiting)
        return waiting_s + sum(
            self._costs.prefill_s(prompt.job.context_tokens, prompt.done_tokens) for prompt in self._prompts
        )

    def submit(self, job: Job) -> None:
        """A request is to be served here."""
        self._waiting.append(job)
        now = self._timeline.now
        if self._computing:
            return
        border = self._batch.next_border(now)
        if border > now:
            self._look_at(border)
        else:
            self._look_at(now)

    def fail(self) -> list[Job]:
        """The instance is gone; the requests that were here, with the tokens they have got."""
        border = self._batch.last_border(self._timeline.now)
        running = self._batch.sequences()
        for job in running:
            job.take(self._batch.leave(job, border), border)
        lost = [*running, *(prompt.job for prompt in self._prompts), *self._waiting]
        for job in lost:
            self.memory.free(job, self._timeline.now)
        self._batch = Batch(self._costs.step_s)
        self._prompts, self._computing = [], False
        self._waiting.clear()
        self._note_busy(False)
        self._version += 1
        return lost

    def _look_at(self, time: float) -> None:
        self._version += 1
        if time != math.inf:
            self._timeline.at(time, self._look, self._version)

    def _look(self, version: int) -> None:
        if version == self._version:
            self._go_on()

    def _go_on(self) -> None:
        """A border: who has ended leaves, computed prompts join, and what comes next is begun."""
        now = self._timeline.now
        self._computing = False
        ended = self._leave(now) + self._join(now)
        self._admit(now)
        if self._prompts:
            self._compute(now)
        else:
            self._decode(now)
        self._note_busy(len(self._batch) > 0 or self._computing)
        for job in ended:
            self._ended(job)

    def _leave(self, now: float) -> list[Job]:
        self._batch.settle(now)
        done = self._batch.finished(now)
        for job in done:
            job.take(self._batch.leave(job, now), now)
            self.memory.free(job, now)
        self.memory.set_growth(self._batch.grown_tokens, now)
        return done

    def _join(self, now: float) -> list[Job]:
        """Prompts that are computed have their first token."""
        ended = []
        for prompt in [prompt for prompt in self._prompts if prompt.done_tokens == prompt.job.context_tokens]:
            job = prompt.job
            self._prompts.remove(prompt)
            self.memory.publish(job, now)
            job.prefilled = True
            job.give_token(now)
            if job.missing_tokens:
                self._batch.join(job, job.context_tokens, job.missing_tokens, now, now)
            else:
                self.memory.free(job, now)
                ended.append(job)
        return ended

    def _admit(self, now: float) -> None:
        """Waiting requests whose prompts have room, in order; as many as one computation takes."""
        missing = sum(prompt.job.context_tokens - prompt.done_tokens for prompt in self._prompts)
        room = self._settings.max_batch_tokens - missing
        while self._waiting and len(self._batch) + len(self._prompts) < self._settings.max_sequences:
            job = self._waiting[0]
            blocks = self.memory.match(job)
            matched = blocks * self._block_tokens
            new = job.context_tokens - matched
            whole = room > 0 if self._settings.chunked else room >= new
            if (self._prompts and not whole) or not self._has_room(new, blocks):
                break
            self._waiting.popleft()
            self.memory.admit(job, blocks, now)
            if not job.prefilled:
                job.cached_tokens = matched
            self._prompts.append(_Prompt(job, matched))
            room -= new

    def _has_room(self, new_tokens: int, matched_blocks: int) -> bool:
        capacity = self.memory.capacity_tokens
        spare = 0 if not self._batch and not self._prompts else WATERMARK * capacity
        used = self.memory.used_tokens + matched_blocks * self._block_tokens  # at most: some may be in use already
        return new_tokens + used + spare <= capacity

    def _compute(self, now: float) -> None:
        """Computes prompts, or the next chunk of them beside a step of the batch."""
        budget = math.inf
        if self._settings.chunked:
            self._make_room(now)
            budget = max(1, self._settings.max_batch_tokens - len(self._batch))
        duration_s = 0.0
        for prompt in self._prompts:
            start = prompt.done_tokens
            prompt.done_tokens = int(min(prompt.job.context_tokens, start + budget))
            budget -= prompt.done_tokens - start
            if prompt.done_tokens > start:
                part_s = self._costs.prefill_s(prompt.done_tokens, start)
                prompt.job.prefill_s += part_s
                duration_s += part_s
        self._computing = True
        if not self._batch:
            self._look_at(now + duration_s)
        elif self._settings.chunked:  # the weights are read once for both
            self._batch.stall(max(0.0, duration_s - self._costs.step_s(0, 0)), now)
            self._look_at(self._plan(1, now))
        else:
            self._batch.stall(duration_s, now)
            self._look_at(now + duration_s)

    def _decode(self, now: float) -> None:
        """Steps until a sequence has ended or memory is full."""
        if not self._batch:
            return
        self._make_room(now)
        steps = min(self._batch.steps_to_finish(now), self.memory.free_tokens // len(self._batch))
        self._look_at(self._plan(max(1, steps), now))

    def _plan(self, steps: int, now: float) -> float:
        """Takes memory for so many steps; when they will have been done."""
        self.memory.set_growth(self._batch.grown_tokens + steps * len(self._batch), now)
        return self._batch.time_of(self._batch.steps_by(now) + steps)

    def _make_room(self, now: float) -> None:
        """Where the batch has no memory for a step, who came last gives its own up, and is computed again later."""
        while self.memory.free_tokens < len(self._batch) and len(self._batch) + len(self._prompts) > 1:
            if self._prompts:
                job = self._prompts.pop().job
            else:
                job = self._batch.sequences()[-1]
                job.take(self._batch.leave(job, now), now)
            self.memory.free(job, now)
            self.memory.set_growth(self._batch.grown_tokens, now)
            self._waiting.appendleft(job)

    def _note_busy(self, busy: bool) -> None:
        now = self._timeline.now
        if self._busy_since >= 0:
            self.busy_s += now - self._busy_since
        self._busy_since = now if busy else -1.0
