"""Decode steps of fixed shapes, captured as CUDA graphs and replayed.

A decode step is hundreds of small operations; launching them one by one takes longer than the GPU needs to compute them.
The shapes of a StaticPlan depend on the bucket of a batch alone, and what it reads of the batch lies in one tensor of
integers: so the same launches serve every batch of the bucket. Without a GPU the same is computed without a graph.
"""

from __future__ import annotations

import contextlib
import logging
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch

from mooncake_core.inference.contract import Slice
from mooncake_core.inference.torch import attention
from mooncake_core.inference.torch.flat_model import Forward
from mooncake_core.units import format_size

SHORTEST_TOKENS: Final = 256
"""Contexts of the smallest bucket: gathering less is no faster, and would take more graphs."""
MOST_GRAPHS: Final = 64
_BEFORE_BLOCKS: Final = 2
"""Integers of a row before its blocks: token and position."""

_log = logging.getLogger(__name__)


class Bucket(NamedTuple):
    """Batches that are computed alike: those of at most so many sequences, of at most so many blocks each."""

    num_rows: int
    num_blocks: int


class StaticPlan:
    """One decode step, from `inputs` [rows, 2 + blocks] alone: token, position and blocks of each sequence. Rows and blocks
    that fill up the bucket name the last block of the KV, which is nobody's."""

    def __init__(self, kv: torch.Tensor, inputs: torch.Tensor, windows: Sequence[int | None]) -> None:
        _, num_layers, _, block_tokens, self._heads, self._dim = kv.shape
        self._num_rows = len(inputs)
        self._windows = windows
        self._dtype = kv.dtype
        # K, or V, of one layer of one block in each row; as wide integers, which the GPU moves in fewer accesses.
        self._block_rows = kv.view(kv.shape[0] * num_layers * 2, -1).view(torch.int64)
        self._token_rows = kv.view(-1, self._heads * self._dim)
        self.input_ids = inputs[None, :, 0].contiguous()
        self.position_ids = inputs[None, :, 1].contiguous()
        positions, blocks = self.position_ids[0], inputs[:, _BEFORE_BLOCKS:]
        layers = torch.arange(num_layers, device=kv.device)[:, None]
        self._gathered = _gathered_rows(blocks, layers)
        self._slots = _slots(blocks, positions, layers, block_tokens)
        keys = torch.arange(blocks.shape[1] * block_tokens, device=kv.device)
        self._masks = {window: self._mask(keys, positions[:, None], window) for window in set(windows)}

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        """As attention.StepPlan.attend."""
        new = attention.new_rows(key, value)
        self._token_rows.index_copy_(0, self._slots[layer], new.view(2 * self._num_rows, -1))
        found = self._block_rows.index_select(0, self._gathered[layer]).view(self._dtype)
        keys, values = found.view(2, self._num_rows, -1, self._heads, self._dim).transpose(2, 3)
        mask = self._masks[self._windows[layer]]
        return attention.attend_decoding(query[0].transpose(0, 1), keys, values, mask, scaling)[None]

    def _mask(self, keys: torch.Tensor, positions: torch.Tensor, window: int | None) -> torch.Tensor:
        """[rows, 1, 1, keys]: 0 where a query may look, else minus infinity; added to the scores, it need not be converted
        in every layer as a mask of booleans would."""
        hidden = keys > positions
        if window is not None:
            hidden |= keys <= positions - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=keys.device)
        return mask.masked_fill_(hidden, float("-inf"))[:, None, None]


def _gathered_rows(blocks: torch.Tensor, layers: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """By layer, the rows of K of all blocks, then V: of [block][layer][k|v]; blocks [rows, blocks], layers [layers, 1]."""
    first = blocks.reshape(-1) * (len(layers) * 2)
    return tuple((torch.cat((first, first + 1)) + layers * 2).unbind())


def _slots(
    blocks: torch.Tensor, positions: torch.Tensor, layers: torch.Tensor, block_tokens: int
) -> tuple[torch.Tensor, ...]:
    """By layer, where K of all new tokens goes, then V: of [block][layer][k|v][token]."""
    block_of = blocks.gather(1, (positions // block_tokens)[:, None])[:, 0]
    keys = block_of * (len(layers) * 2 * block_tokens) + positions % block_tokens
    return tuple((torch.cat((keys, keys + block_tokens)) + layers * (2 * block_tokens)).unbind())


@dataclass(slots=True)
class _Step:
    """A bucket's memory, at addresses that its graph knows."""

    host_inputs: torch.Tensor
    """[rows, 2 + blocks], pinned where there is a GPU."""
    inputs: torch.Tensor
    logits: torch.Tensor
    """[rows, vocabulary] in float32; buckets of equally many rows share it."""
    best: torch.Tensor
    """[rows]: the most probable tokens."""
    graph: Any = None


class DecodeGraphs:
    """Decode steps, by bucket. The last block of `kv` must be nobody's: what fills a bucket up is written there."""

    def __init__(
        self,
        kv: torch.Tensor,
        forward: Forward,
        head: Callable[[torch.Tensor], torch.Tensor],
        *,
        windows: Sequence[int | None],
        vocab_size: int,
        limit_bytes: int,
    ) -> None:
        self._kv = kv
        self._forward = forward
        self._head = head
        self._windows = windows
        self._vocab_size = vocab_size
        self._limit_bytes = limit_bytes
        self._on_gpu = kv.is_cuda
        self._steps: dict[Bucket, _Step] = {}
        """The one used last is the last one."""
        self._outputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._refused: set[Bucket] = set()
        self._held_bytes = 0
        self._pool: Any = None
        self._stream: Any = None
        """One for all captures: cuBLAS keeps tens of MiB for each stream it is used on."""
        self._failed = False

    def run(self, slices: Sequence[Slice]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Computes decode slices and writes their KV: logits [slices, vocabulary] and the most probable tokens [slices],
        which hold until the next run. None where they have to be computed without a graph."""
        bucket = self._bucket(slices)
        step = None if self._failed else self._step(bucket)
        if step is None:
            return None
        self._fill(step, slices)
        if self._on_gpu and step.graph is None:
            try:
                self._capture(bucket, step)
            except Exception as error:  # whatever a model does that cannot be captured
                self._give_up(error)
                return None
        if step.graph is not None:
            step.graph.replay()
        else:
            self._compute(step)
        return step.logits[: len(slices)], step.best[: len(slices)]

    def _bucket(self, slices: Sequence[Slice]) -> Bucket:
        longest = max(len(part.block_ids) for part in slices)
        shortest = max(1, SHORTEST_TOKENS // self._kv.shape[3])
        return Bucket(_power_of_two(len(slices)), max(_power_of_two(longest), shortest))

    def _step(self, bucket: Bucket) -> _Step | None:
        """The bucket's memory, if there is room for it."""
        step = self._steps.pop(bucket, None)
        if step is None and self._has_room(bucket):
            step = self._make(bucket)
        if step is None:
            return None
        self._steps[bucket] = step
        if len(self._steps) > MOST_GRAPHS:
            del self._steps[next(iter(self._steps))]
        return step

    def _has_room(self, bucket: Bucket) -> bool:
        if bucket in self._refused:
            return False
        # Graphs reuse each other's memory, which grows to what the largest one needs: one layer's gathered KV, mostly.
        largest = max(map(self._gathered_bytes, self._steps), default=0)
        more = max(0, self._gathered_bytes(bucket) - largest)
        if bucket.num_rows not in self._outputs:
            more += bucket.num_rows * self._vocab_size * 4
        if self._held_bytes + more <= self._limit_bytes:
            return True
        self._refused.add(bucket)
        _log.info(
            "decode steps of %d sequences, %d blocks each, run without a graph: it would take another %s, graphs hold %s of %s",
            *bucket, format_size(more), format_size(self._held_bytes), format_size(self._limit_bytes),
        )  # fmt: skip
        return False

    def _gathered_bytes(self, bucket: Bucket) -> int:
        layer_bytes: int = self._kv[0, 0].nbytes
        return bucket.num_rows * bucket.num_blocks * layer_bytes

    def _make(self, bucket: Bucket) -> _Step:
        shape = (bucket.num_rows, _BEFORE_BLOCKS + bucket.num_blocks)
        host_inputs = torch.empty(shape, dtype=torch.int64, pin_memory=self._on_gpu)
        inputs = torch.empty(shape, dtype=torch.int64, device=self._kv.device)
        if bucket.num_rows not in self._outputs:
            logits = torch.empty((bucket.num_rows, self._vocab_size), dtype=torch.float32, device=self._kv.device)
            best = torch.empty(bucket.num_rows, dtype=torch.int64, device=self._kv.device)
            self._outputs[bucket.num_rows] = (logits, best)
            self._held_bytes += logits.nbytes
        return _Step(host_inputs, inputs, *self._outputs[bucket.num_rows])

    def _fill(self, step: _Step, slices: Sequence[Slice]) -> None:
        """Brings a batch into the step's inputs."""
        num_rows, width = step.inputs.shape
        scratch = len(self._kv) - 1
        numbers = array("q")
        for part in slices:
            numbers.append(part.token_ids[0])
            numbers.append(part.start)
            numbers.extend(part.block_ids)
            numbers.extend([scratch] * (width - _BEFORE_BLOCKS - len(part.block_ids)))
        filler = [0, 0, *[scratch] * (width - _BEFORE_BLOCKS)]
        numbers.extend(filler * (num_rows - len(slices)))
        step.host_inputs.copy_(torch.frombuffer(numbers, dtype=torch.int64).view(num_rows, width))
        step.inputs.copy_(step.host_inputs, non_blocking=True)

    def _compute(self, step: _Step) -> None:
        plan = StaticPlan(self._kv, step.inputs, self._windows)
        attention.begin(plan)
        try:
            hidden = self._forward(plan.input_ids, plan.position_ids)[0]
        finally:
            attention.end()
        step.logits.copy_(self._head(hidden))
        torch.argmax(step.logits, -1, out=step.best)

    def _capture(self, bucket: Bucket, step: _Step) -> None:
        """Records what the step launches; runs it once before, since libraries set themselves up at first use."""
        started = time.monotonic()
        device = self._kv.device
        before = torch.cuda.current_stream(device)
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        stream = self._stream
        stream.wait_stream(before)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                self._compute(step)
            stream.synchronize()
            # Other threads go on using the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                reserved_bytes = torch.cuda.memory_reserved(device)
                self._compute(step)
                self._held_bytes += torch.cuda.memory_reserved(device) - reserved_bytes
        finally:
            torch.cuda.set_stream(before)  # a capture that failed leaves its own behind
        step.graph = graph
        _log.info(
            "decode steps of up to %d sequences, %d blocks each, captured in %.2fs; %d of at most %d graphs hold %s of %s",
            *bucket, time.monotonic() - started, len(self._steps), MOST_GRAPHS,
            format_size(self._held_bytes), format_size(self._limit_bytes),
        )  # fmt: skip

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        self._steps.clear()
        if self._pool is not None:
            # A capture that failed may leave the allocator behind in it, where nothing can be freed.
            with contextlib.suppress(Exception):
                torch._C._cuda_endAllocateToPool(self._kv.device.index, self._pool)
        reason = str(error).partition("\n")[0]
        _log.warning("decode steps run without CUDA graphs: capturing failed: %s: %s", type(error).__name__, reason)


def _power_of_two(number: int) -> int:
    """The next one that is not smaller."""
    return 1 << (number - 1).bit_length()
