"""Continuous batching in closed form: between two changes of the batch, each step is longer than the one before by the same
time (each sequence has one token more), so any number of steps is one quadratic.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

from mooncake_core.sim.gaps import Run

_MOST_RUNS: Final = 512
S = TypeVar("S")


class _Member(NamedTuple):
    """A sequence's part in a batch."""

    step: int
    """Done when it joined."""
    context_tokens: int
    entry: tuple[int, int]
    """Of those by which its end is found: its last step, and the number of the entry."""
    waited_s: float
    """From its latest token to the border at which it joined; negative where that was within a stall."""


class Batch(Generic[S]):
    """Sequences that get a token each in every step. Changes only at borders of steps; time is told by the caller."""

    def __init__(self, step_s: Callable[[int, int], float]) -> None:
        """`step_s(sequences, context tokens)` is linear in the context."""
        self.step_s = step_s
        self.context_tokens = 0
        """Of all sequences, at the latest change."""
        self._joined_tokens = 0
        self._steps = 0
        """Done when the run began that goes on."""
        self._since = 0.0
        self._run = Run(0, 0.0, 0.0)
        self._stalled_s = 0.0
        self._last_steps: list[tuple[int, int, S]] = []
        self._order = 0
        self._members: dict[S, _Member] = {}
        self._runs: list[tuple[int, Run]] = []
        """Steps done when it began, and the run; the oldest first."""
        self._most_runs = _MOST_RUNS

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: S) -> bool:
        return sequence in self._members

    @property
    def grown_tokens(self) -> int:
        """Context of its sequences that came after they joined, at the latest change."""
        return self.context_tokens - self._joined_tokens

    def sequences(self) -> list[S]:
        """In the order they joined."""
        return list(self._members)

    def context_of(self, sequence: S, now: float) -> int:
        """Its tokens at a border."""
        member = self._members[sequence]
        return member.context_tokens + self.steps_by(now) - member.step

    def join(self, sequence: S, context_tokens: int, steps: int, last_token_at: float, now: float) -> None:
        """A sequence gets its next `steps` (1 or more) tokens here. `now` is a border, the end of a stall, or the batch is
        empty; its latest token came at `last_token_at`."""
        self._settle(now)
        entry = (self._steps + steps, self._order)
        self._members[sequence] = _Member(self._steps, context_tokens, entry, self._since - last_token_at)
        self.context_tokens += context_tokens
        self._joined_tokens += context_tokens
        heapq.heappush(self._last_steps, (*entry, sequence))
        self._order += 1
        self._begin()

    def leave(self, sequence: S, now: float) -> list[Run]:
        """Takes a sequence out at a border; the gaps it has had here."""
        self._settle(now)
        member = self._members.pop(sequence)
        self.context_tokens -= member.context_tokens + self._steps - member.step
        self._joined_tokens -= member.context_tokens
        runs = self._since_step(member.step)
        if runs:
            count, first_s, growth_s = runs[0]
            runs[:1] = [Run(1, first_s + member.waited_s, 0.0)]
            if count > 1:
                runs.insert(1, Run(count - 1, first_s + growth_s, growth_s))
        self._begin()
        return runs

    def finished(self, now: float) -> list[S]:
        """Sequences that have had all their tokens by a border; they are still here."""
        done = self.steps_by(now)
        found = []
        while self._last_steps and self._last_steps[0][0] <= done:
            last_step, order, sequence = heapq.heappop(self._last_steps)
            if self._is_current((last_step, order), sequence):
                found.append(sequence)
        return found

    def stall(self, duration_s: float, now: float) -> None:
        """The next step ends later: the instance did something else since the border `now`."""
        self._settle(now)
        self._stalled_s += duration_s
        self._begin()

    def settle(self, now: float) -> None:
        """Brings what is counted up to a border."""
        self._settle(now)
        self._begin()

    def steps_to_finish(self, now: float) -> int:
        """Steps from a border until the first sequence has all its tokens; the batch is not empty."""
        self.next_finish()
        return self._last_steps[0][0] - self.steps_by(now)

    def next_finish(self) -> float:
        """When the first sequence has all its tokens; infinity where there is none."""
        while self._last_steps and not self._is_current(self._last_steps[0][:2], self._last_steps[0][2]):
            heapq.heappop(self._last_steps)
        return self.time_of(self._last_steps[0][0]) if self._last_steps else math.inf

    def next_border(self, now: float) -> float:
        """The end of the step that runs at `now`, or `now` where none runs."""
        if not self._members:
            return now
        done = self.steps_by(now)
        return now if self.time_of(done) == now else self.time_of(done + 1)

    def last_border(self, now: float) -> float:
        """When the latest step has ended."""
        return self.time_of(self.steps_by(now))

    def time_of(self, step: int) -> float:
        """When a step has ended."""
        number = step - self._steps
        return self._since if number <= 0 else self._since + self._stalled_s + self._run.total_s(number)

    def steps_by(self, now: float) -> int:
        """Steps ended by a time, since the beginning."""
        spent = now - self._since - self._stalled_s
        first, growth = self._run.first_s, self._run.growth_s
        if not self._members or spent <= 0 or first <= 0:
            return self._steps
        if growth > 0:
            half = first - growth / 2
            number = int(2 * spent / (half + math.sqrt(half * half + 2 * growth * spent)))
        else:
            number = int(spent / first)
        number = max(0, number - 1)  # the root is rounded: borders are what time_of says
        while self.time_of(self._steps + number + 1) <= now:
            number += 1
        return self._steps + number

    def step_now_s(self) -> float:
        """How long the next step takes, at the latest change."""
        return self._run.first_s if self._members else 0.0

    def _is_current(self, entry: tuple[int, int], sequence: S) -> bool:
        """Whether an entry is not of a sequence that has left, and perhaps joined again."""
        member = self._members.get(sequence)
        return member is not None and member.entry == entry

    def _settle(self, now: float) -> None:
        """Ends the run at a border."""
        steps = self.steps_by(now) - self._steps
        if steps:
            first_s, growth_s = self._run.first_s, self._run.growth_s
            rest = steps
            if self._stalled_s:
                self._log(self._steps, Run(1, first_s + self._stalled_s, 0.0))
                first_s, rest = first_s + growth_s, steps - 1
            if rest:
                self._log(self._steps + steps - rest, Run(rest, first_s, growth_s))
            self._steps += steps
            self._stalled_s = 0.0
            self.context_tokens += steps * len(self._members)
        if steps or not self._members:
            self._stalled_s = 0.0
            self._since = now

    def _begin(self) -> None:
        size, context = len(self._members), self.context_tokens
        if not size:
            self._runs.clear()
            return
        first_s = self.step_s(size, context)
        self._run = Run(0, first_s, self.step_s(size, context + size) - first_s)

    def _log(self, step: int, run: Run) -> None:
        self._runs.append((step, run))
        if len(self._runs) > self._most_runs:
            oldest = min(member.step for member in self._members.values())
            self._runs = [entry for entry in self._runs if entry[0] >= oldest]
            self._most_runs = max(_MOST_RUNS, 2 * len(self._runs))

    def _since_step(self, step: int) -> list[Run]:
        found: list[Run] = []
        for begun, run in reversed(self._runs):
            if begun < step:
                break  # runs end where a sequence joins
            found.append(run)
        found.reverse()
        return found
