"""A GPU's KV and its copy in host memory, which the transfers read and write.

Both have the same layout, so a layer of neighbouring blocks is one strided copy: blocks of a sequence mostly lie together.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from mooncake_core.inference.contract import LayerWatcher, Slice
from mooncake_core.inference.torch.cuda_runtime import CudaRuntime
from mooncake_core.units import format_size

_log = logging.getLogger(__name__)


class HostMirror:
    """The KV on the GPU and in host memory, both [block, layer, k|v, token, kv_head, dim]; the GPU may have more blocks."""

    def __init__(self, kv: Any, host: Any, runtime: CudaRuntime | None) -> None:
        """Without a `runtime` blocks are copied one by one."""
        self._kv = kv
        self._host = host
        self._runtime = runtime
        self._block_bytes = host[0].nbytes
        self._layer_bytes = host[0, 0].nbytes
        self.pinned = runtime is not None and runtime.pin(host.data_ptr(), host.nbytes)
        self._departing: Any = None

    def stage_in(self, block_ids: Sequence[int], layer: int | None = None) -> None:
        """Starts bringing blocks to the GPU; what is computed afterwards on this stream finds them there. What lies in host
        memory must stay until something of it was computed."""
        self._copy(block_ids, layer, to_host=False)

    def stage_out(self, block_ids: Sequence[int]) -> None:
        """Brings blocks to host memory, and waits for them."""
        self._copy(block_ids, None, to_host=True)
        if self._kv.is_cuda:
            torch.cuda.current_stream(self._kv.device).synchronize()

    def departures(self, slices: Sequence[Slice], watcher: LayerWatcher) -> StagedDepartures:
        """What tells a watcher of the layers of a step."""
        if self._departing is None:
            self._departing = torch.cuda.Stream(self._kv.device)
        return StagedDepartures(self, touched(slices, self._kv.shape[3]), self._departing, watcher)

    def depart(self, block_ids: Sequence[int], layer: int, stream: Any) -> Any:
        """Starts bringing a layer to host memory once what is launched so far is computed; returns the event of its
        arrival."""
        stream.wait_stream(torch.cuda.current_stream(self._kv.device))
        with torch.cuda.stream(stream):
            self._copy(block_ids, layer, to_host=True)
            arrived = torch.cuda.Event()
            arrived.record(stream)
        return arrived

    def close(self) -> None:
        """Unpins the host memory. Idempotent."""
        if self.pinned and self._runtime is not None:
            torch.cuda.synchronize(self._kv.device)
            self._runtime.unpin(self._host.data_ptr())
            self.pinned = False

    def _copy(self, block_ids: Sequence[int], layer: int | None, *, to_host: bool) -> None:
        if self._runtime is None:
            target, source = (self._host, self._kv) if to_host else (self._kv, self._host)
            layers = slice(None) if layer is None else layer
            for block_id in block_ids:
                target[block_id, layers].copy_(source[block_id, layers], non_blocking=True)
            return
        offset, width = (0, self._block_bytes) if layer is None else (layer * self._layer_bytes, self._layer_bytes)
        for first, count in runs(block_ids):
            start = first * self._block_bytes + offset
            gpu, host = self._kv.data_ptr() + start, self._host.data_ptr() + start
            self._runtime.copy_rows(
                host if to_host else gpu,
                gpu if to_host else host,
                pitch_bytes=self._block_bytes,
                width_bytes=width,
                num_rows=count,
                to_host=to_host,
            )


class StagedDepartures:
    """Stands between an engine and whoever watches its layers: a layer counts as written when its copy on the host is
    there. Copies run on a stream of their own; a later layer looks whether earlier ones have arrived, and never waits."""

    def __init__(self, mirror: HostMirror, block_ids: Sequence[int], stream: Any, watcher: LayerWatcher) -> None:
        self._mirror = mirror
        self._block_ids = block_ids
        self._stream = stream
        self._watcher = watcher
        self._under_way: deque[tuple[int, Any]] = deque()

    def before_layer(self, layer: int) -> None:
        self._watcher.before_layer(layer)

    def layer_written(self, layer: int) -> None:
        self._under_way.append((layer, self._mirror.depart(self._block_ids, layer, self._stream)))
        while self._under_way and self._under_way[0][1].query():
            self._watcher.layer_written(self._under_way.popleft()[0])

    def finish(self) -> None:
        """Waits for the last copies."""
        while self._under_way:
            layer, arrived = self._under_way.popleft()
            arrived.synchronize()
            self._watcher.layer_written(layer)


def mirror_of(kv: Any, host: Any) -> HostMirror:
    """With memory that the GPU reaches by itself, where the CUDA runtime can be called."""
    try:
        runtime = CudaRuntime(kv.device)
    except (OSError, AttributeError) as error:
        _log.warning("KV goes between GPU and host block by block: the CUDA runtime cannot be called: %s", error)
        return HostMirror(kv, host, None)
    mirror = HostMirror(kv, host, runtime)
    if not mirror.pinned:
        _log.warning("%s of KV memory could not be pinned: copies between GPU and host wait", format_size(host.nbytes))
    return mirror


def touched(slices: Sequence[Slice], block_tokens: int) -> list[int]:
    """Blocks that get new KV."""
    return [block_id for part in slices for block_id in part.block_ids[part.start // block_tokens :]]


def runs(block_ids: Sequence[int]) -> list[tuple[int, int]]:
    """(first block, number of blocks) of neighbouring blocks."""
    ordered = sorted(set(block_ids))
    ends = [index for index, (one, other) in enumerate(pairwise(ordered), 1) if other != one + 1]
    bounds = [0, *ends, len(ordered)] if ordered else [0]
    return [(ordered[first], last - first) for first, last in pairwise(bounds)]
