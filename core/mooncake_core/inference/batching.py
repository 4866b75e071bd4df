"""Continuous batching: which slices of which sequences are computed in the next step, and who owns which block. Pure.

Decode steps go first, up to max_batch; then prefill chunks up to chunk_tokens together. Among each, the lowest priority
number goes first; of equal ones, decode steps take turns and prompts go in order of arrival. Priority is strict: while
urgent sequences fill every step, the others wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from mooncake_core.errors import EngineError, NoSpace
from mooncake_core.inference.contract import Slice
from mooncake_core.wire.messages.membership import InstanceLoad
from mooncake_core.wire.messages.serving import FinishReason, Logprobs, Sampling

_priority: Final = attrgetter("priority")


@dataclass(slots=True, kw_only=True)
class Sequence:
    """Tokens to compute, and how many are to follow."""

    sequence_id: int
    token_ids: list[int]
    """Not computed yet; the first one stands at position `start`, and all before it lie in the blocks already."""
    start: int
    sampling: Sampling
    max_new_tokens: int
    eos_token_ids: SequenceOf[int] = ()
    priority: int = 0
    """Lower is earlier."""
    num_new: int = 0

    def finish_reason(self, token_id: int) -> FinishReason | None:
        """Why the sequence ends with this new token, if it does."""
        if token_id in self.sampling.stop_token_ids:
            return "stop"
        if token_id in self.eos_token_ids and not self.sampling.ignore_eos:
            return "stop"
        return "length" if self.num_new >= self.max_new_tokens else None


@dataclass(frozen=True, slots=True)
class Emitted:
    """A new token of a sequence."""

    sequence_id: int
    token_id: int
    finish_reason: FinishReason | None
    logprobs: Logprobs | None = None


@dataclass(slots=True)
class _Memory:
    """Blocks of one sequence. Released while a step uses them, they are freed after the step."""

    block_ids: list[int] = field(default_factory=list)
    in_step: bool = False
    released: bool = False


class Batching:
    """Owner of the KV blocks and planner of steps."""

    def __init__(self, *, num_blocks: int, block_tokens: int, max_batch: int, chunk_tokens: int) -> None:
        self._num_blocks = num_blocks
        self._block_tokens = block_tokens
        self._max_batch = max_batch
        self._chunk_tokens = chunk_tokens
        self._free = list(reversed(range(num_blocks)))
        self._memory: dict[int, _Memory] = {}
        self._running: dict[int, Sequence] = {}
        self._planned: list[tuple[Sequence, int, bool]] = []

    @property
    def idle(self) -> bool:
        """Nothing is to be computed."""
        return not self._running

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def reserve(self, sequence_id: int, num_tokens: int) -> list[int]:
        """Blocks for a sequence of so many tokens.

        Raises:
            NoSpace: so many blocks are not free.
        """
        needed = -(-num_tokens // self._block_tokens)
        if sequence_id in self._memory:
            raise EngineError(f"sequence {sequence_id} holds blocks already")
        if needed > len(self._free):
            raise NoSpace(f"{needed} blocks of KV memory are needed, {len(self._free)} of {self._num_blocks} are free")
        block_ids = [self._free.pop() for _ in range(needed)]
        self._memory[sequence_id] = _Memory(block_ids)
        return list(block_ids)

    def release(self, sequence_id: int) -> None:
        """Ends a sequence and gives its blocks back, after the step that uses them. Unknown ones are ignored."""
        self._running.pop(sequence_id, None)
        memory = self._memory.get(sequence_id)
        if memory is None:
            return
        if memory.in_step:
            memory.released = True
        else:
            self._free.extend(reversed(self._memory.pop(sequence_id).block_ids))

    def start(self, sequence: Sequence) -> None:
        """Computes a sequence whose blocks are reserved.

        Raises:
            EngineError: it has no blocks, or not enough for its tokens.
        """
        memory = self._memory.get(sequence.sequence_id)
        last = sequence.start + len(sequence.token_ids) + sequence.max_new_tokens - 1
        if memory is None or memory.released or last > len(memory.block_ids) * self._block_tokens:
            raise EngineError(f"sequence {sequence.sequence_id} has no memory for its {last} tokens")
        self._running[sequence.sequence_id] = sequence

    def stop(self, sequence_id: int) -> None:
        """Computes a sequence no further; its blocks stay."""
        self._running.pop(sequence_id, None)

    def plan(self) -> list[Slice]:
        """The slices of the next step; `complete` or `fail` must follow."""
        self._planned = []
        running = sorted(self._running.values(), key=_priority)
        decoding = [sequence for sequence in running if len(sequence.token_ids) == 1]
        for sequence in decoding[: self._max_batch]:
            self._planned.append((sequence, 1, True))
        budget = self._chunk_tokens
        for sequence in running:
            if len(sequence.token_ids) > 1 and budget > 0:
                length = min(budget, len(sequence.token_ids))
                budget -= length
                self._planned.append((sequence, length, length == len(sequence.token_ids)))
        return [self._slice(*planned) for planned in self._planned]

    def complete(
        self, token_ids: SequenceOf[int | None], logprobs: Mapping[int, Logprobs] | None = None
    ) -> list[Emitted]:
        """The step is done: advances its sequences and says what was chosen. `logprobs` is by index of the slice."""
        emitted = []
        for index, ((sequence, length, last), token_id) in enumerate(zip(self._planned, token_ids, strict=True)):
            sequence.start += length
            del sequence.token_ids[:length]
            if last and token_id is not None and sequence.sequence_id in self._running:
                emitted.append(self._emit(sequence, token_id, logprobs.get(index) if logprobs else None))
        self._rotate()
        self._end_step()
        return emitted

    def fail(self) -> list[int]:
        """The step failed: its sequences cannot go on. Returns their ids."""
        failed = [sequence.sequence_id for sequence, _, _ in self._planned]
        for sequence_id in failed:
            self._running.pop(sequence_id, None)
        self._end_step()
        return failed

    def load(self) -> InstanceLoad:
        """What the instance reports of itself."""
        decoding = [sequence for sequence in self._running.values() if len(sequence.token_ids) == 1]
        waiting = [sequence for sequence in self._running.values() if len(sequence.token_ids) > 1]
        return InstanceLoad(
            queued_requests=len(waiting),
            running_requests=len(decoding),
            queued_tokens=sum(len(sequence.token_ids) for sequence in waiting),
            context_tokens=sum(sequence.start for sequence in decoding),
            free_blocks=len(self._free),
            num_blocks=self._num_blocks,
        )

    def check(self) -> list[str]:
        """What does not add up; for tests."""
        owned = [block_id for memory in self._memory.values() for block_id in memory.block_ids]
        problems = []
        if sorted([*owned, *self._free]) != list(range(self._num_blocks)):
            problems.append("blocks are lost, or owned twice")
        problems += [f"sequence {number} runs without blocks" for number in self._running if number not in self._memory]
        return problems

    def _slice(self, sequence: Sequence, length: int, last: bool) -> Slice:
        memory = self._memory[sequence.sequence_id]
        memory.in_step = True
        num_blocks = -(-(sequence.start + length) // self._block_tokens)
        return Slice(
            sequence_id=sequence.sequence_id,
            token_ids=sequence.token_ids[:length],
            start=sequence.start,
            block_ids=memory.block_ids[:num_blocks],
            sampling=sequence.sampling if last else None,
        )

    def _emit(self, sequence: Sequence, token_id: int, logprobs: Logprobs | None) -> Emitted:
        sequence.num_new += 1
        reason = sequence.finish_reason(token_id)
        if reason:
            del self._running[sequence.sequence_id]
        else:
            sequence.token_ids.append(token_id)
        return Emitted(sequence.sequence_id, token_id, reason, logprobs)

    def _rotate(self) -> None:
        """Where more sequences decode than fit a step, those that waited go first next time."""
        if sum(len(sequence.token_ids) == 1 for sequence in self._running.values()) > self._max_batch:
            for sequence, _, _ in self._planned:
                if sequence.sequence_id in self._running and len(sequence.token_ids) == 1:
                    self._running[sequence.sequence_id] = self._running.pop(sequence.sequence_id)

    def _end_step(self) -> None:
        for sequence, _, _ in self._planned:
            memory = self._memory.get(sequence.sequence_id)
            if memory is not None:
                memory.in_step = False
                if memory.released:
                    self._free.extend(reversed(self._memory.pop(sequence.sequence_id).block_ids))
        self._planned = []
