"""mooncake bench calibrate: how long an engine's computations take, fitted to what the scheduler predicts with.

Prefills over prompt length and length of a prefix that is in place, decode steps over batch and context. What is fitted is the
linear form of CostHint, without negative terms, so that relative errors are small: a short prompt counts as much as a long one.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from mooncake_core.bench.statistics import Quantiles, quantiles
from mooncake_core.conductor.cost import HintCosts, hint_of
from mooncake_core.config.schema import CostConfig
from mooncake_core.errors import UsageError
from mooncake_core.inference.contract import Engine, Slice
from mooncake_core.wire.messages.membership import CostHint
from mooncake_core.wire.messages.serving import Sampling

PREFIXES: Final = (0.0, 0.5, 0.75)
"""Shares of a prompt that are in place."""
SHORTEST_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationLimits:
    """How far the grid goes."""

    longest_prompt: int = 8192
    largest_batch: int = 32
    chunk_tokens: int = 512
    """Prompts are computed in chunks of so many, as the role does."""
    repeats: int = 3
    """Each point is measured so often; the median counts."""


class PrefillPoint(Struct, frozen=True, kw_only=True):
    """A prompt that was computed."""

    prompt_tokens: int
    matched_tokens: int
    measured_s: float
    fitted_s: float = 0.0


class StepPoint(Struct, frozen=True, kw_only=True):
    """A decode step that was computed."""

    batch: int
    context_tokens: int
    """Of all sequences together."""
    measured_s: float
    fitted_s: float = 0.0


class Calibration(Struct, frozen=True, kw_only=True):
    """What was measured, and the cost model that fits it."""

    cost: CostConfig
    prefill: list[PrefillPoint]
    decode: list[StepPoint]
    prefill_error: Quantiles
    """Relative: how far the fit is from what was measured, over what was measured."""
    decode_error: Quantiles


def calibrate(
    engine: Engine,
    limits: CalibrationLimits,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Measures on an engine that nobody else uses.

    Raises:
        UsageError: its KV memory does not hold enough tokens for more than one length.
    """
    bench = _Bench(engine, limits, clock)
    prompts, batches = bench.prompts(), bench.batches()
    done = itertools.count(1)
    prefill, decode = [], []
    for prompt_tokens, matched_tokens in prompts:
        measured_s = bench.prefill_s(prompt_tokens, matched_tokens)
        prefill.append(PrefillPoint(prompt_tokens=prompt_tokens, matched_tokens=matched_tokens, measured_s=measured_s))
        progress(next(done))
    for batch, context in batches:
        step_s = bench.step_s(batch, context)
        decode.append(StepPoint(batch=batch, context_tokens=batch * context, measured_s=step_s))
        progress(next(done))
    return fit(prefill, decode, engine.info.cost)


def num_points(engine: Engine, limits: CalibrationLimits) -> int:
    """That `calibrate` will measure."""
    bench = _Bench(engine, limits, time.perf_counter)
    return len(bench.prompts()) + len(bench.batches())


def fit(prefill: Sequence[PrefillPoint], decode: Sequence[StepPoint], hint: CostHint) -> Calibration:
    """The cost model that fits best, and how well. What the engine alone does not show is as in its hint."""
    base, per_token, per_token2 = _fit(
        [
            (1.0, point.prompt_tokens - point.matched_tokens, point.prompt_tokens**2 - point.matched_tokens**2)
            for point in prefill
        ],
        [point.measured_s for point in prefill],
    )
    step_base, per_sequence, per_context = _fit(
        [(1.0, point.batch, point.context_tokens) for point in decode], [point.measured_s for point in decode]
    )
    cost = CostConfig(
        prefill_base=base,
        prefill_per_token=per_token,
        prefill_per_token2=per_token2,
        step_base=step_base,
        step_per_sequence=per_sequence,
        step_per_context_token=per_context,
        fetch_bytes_per_s=hint.fetch_bytes_per_s,
        load_bytes_per_s=hint.load_bytes_per_s,
    )
    costs = HintCosts(hint_of(cost))
    prefill = [
        msgspec.structs.replace(point, fitted_s=costs.prefill_s(point.prompt_tokens, point.matched_tokens))
        for point in prefill
    ]
    decode = [
        msgspec.structs.replace(point, fitted_s=costs.step_s(point.batch, point.context_tokens)) for point in decode
    ]
    return Calibration(
        cost=cost,
        prefill=prefill,
        decode=decode,
        prefill_error=_error(prefill),
        decode_error=_error(decode),
    )


class _Bench:
    """An engine's KV memory, given out from the beginning for each point."""

    def __init__(self, engine: Engine, limits: CalibrationLimits, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._limits = limits
        self._clock = clock
        self._block_tokens = engine.info.layout.block_tokens
        self._most_tokens = engine.info.num_blocks * self._block_tokens
        self._ids = itertools.count(1)

    def prompts(self) -> list[tuple[int, int]]:
        """Lengths of prompts, and of the prefix that is in place."""
        longest = min(self._limits.longest_prompt, self._most_tokens - 1, self._engine.info.max_context_tokens - 1)
        lengths = _doubling(SHORTEST_TOKENS, longest)
        if len(lengths) < 3:
            raise UsageError(
                f"expected KV memory for prompts of {4 * SHORTEST_TOKENS} tokens and more, the engine holds "
                f"{self._most_tokens}: raise engine.kv_memory"
            )
        found = {
            (length, int(length * share) // self._block_tokens * self._block_tokens)
            for length in lengths
            for share in PREFIXES
        }
        return sorted(found)

    def batches(self) -> list[tuple[int, int]]:
        """Numbers of sequences, and the context of each."""
        longest = min(self._limits.longest_prompt, self._engine.info.max_context_tokens - 1)
        sizes = [1, *_doubling(2, self._limits.largest_batch)]
        contexts = [length for length in _doubling(SHORTEST_TOKENS, longest) if length <= longest]
        return [
            (batch, context) for batch in sizes for context in contexts[::2] if self._fits(batch, context) or batch == 1
        ]

    def prefill_s(self, prompt_tokens: int, matched_tokens: int) -> float:
        """To compute what follows the prefix."""
        sequence_id, blocks = next(self._ids), self._blocks(0, prompt_tokens)
        self._compute(sequence_id, blocks, 0, matched_tokens)

        def measure() -> float:
            begun = self._clock()
            self._compute(sequence_id, blocks, matched_tokens, prompt_tokens)
            return self._clock() - begun

        measure()  # the first one of a shape may compile and allocate
        return statistics.median(measure() for _ in range(self._limits.repeats))

    def step_s(self, batch: int, context: int) -> float:
        """Of so many sequences with such a context each."""
        slices = []
        for index in range(batch):
            sequence_id, blocks = next(self._ids), self._blocks(index, context + 1)
            self._compute(sequence_id, blocks, 0, context)
            token = Slice(sequence_id=sequence_id, token_ids=[1], start=context, block_ids=blocks, sampling=Sampling())
            slices.append(token)

        def measure() -> float:
            begun = self._clock()
            self._engine.step(slices)
            return self._clock() - begun

        measure()
        return statistics.median(measure() for _ in range(self._limits.repeats))

    def _compute(self, sequence_id: int, blocks: list[int], start: int, end: int) -> None:
        """Positions start to end - 1, chunk by chunk."""
        for begin in range(start, end, self._limits.chunk_tokens):
            stop = min(end, begin + self._limits.chunk_tokens)
            tokens = [1 + position % 7 for position in range(begin, stop)]
            self._engine.step(
                [
                    Slice(
                        sequence_id=sequence_id,
                        token_ids=tokens,
                        start=begin,
                        block_ids=blocks,
                        sampling=Sampling() if stop == end else None,
                    )
                ]
            )

    def _blocks(self, index: int, num_tokens: int) -> list[int]:
        """Of one of several sequences of equal length."""
        count = self._engine.info.layout.blocks_for(num_tokens)
        return list(range(index * count, (index + 1) * count))

    def _fits(self, batch: int, context: int) -> bool:
        return batch * self._engine.info.layout.blocks_for(context + 1) <= self._engine.info.num_blocks


def _doubling(first: int, last: int) -> list[int]:
    """first, 2 * first, ..., and last itself."""
    found = []
    value = first
    while value < last:
        found.append(value)
        value *= 2
    return [*found, last] if last >= first else found


def _fit(rows: Sequence[tuple[float, float, float]], measured_s: Sequence[float]) -> list[float]:
    """Least squares of relative errors. A term that comes out negative is left out, the most negative first."""
    target = np.array(measured_s, np.float64)
    terms = np.array(rows, np.float64) / target[:, None]
    scales = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    kept = list(range(terms.shape[1]))
    found: npt.NDArray[np.float64] = np.zeros(terms.shape[1])
    while kept:
        solution = np.linalg.lstsq(terms[:, kept] / scales[kept], np.ones(len(target)), rcond=None)[0]
        if (solution >= 0).all():
            found[kept] = solution / scales[kept]
            break
        del kept[int(solution.argmin())]
    return [float(value) for value in found]


def _error(points: Sequence[PrefillPoint] | Sequence[StepPoint]) -> Quantiles:
    found = quantiles([abs(point.fitted_s - point.measured_s) / point.measured_s for point in points])
    assert found is not None  # there are points
    return found
