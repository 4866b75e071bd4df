"""KV on its way from a GPU to host memory, layer by layer, beside the computation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from mooncake_core.inference.contract import LayerWatcher, Slice


class StagedDepartures:
    """Stands between an engine and whoever watches its layers: a layer counts as written when its copy on the host is
    there. Copies run on a stream of their own; a later layer looks whether earlier ones have arrived, and never waits."""

    def __init__(self, kv: Any, staging: Any, slices: Sequence[Slice], watcher: LayerWatcher) -> None:
        self._kv = kv
        self._staging = staging
        self._watcher = watcher
        self._blocks = _touched(slices, kv.shape[3])
        self._stream = torch.cuda.Stream(kv.device)
        self._under_way: deque[tuple[int, Any]] = deque()

    def before_layer(self, layer: int) -> None:
        self._watcher.before_layer(layer)

    def layer_written(self, layer: int) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._kv.device))
        with torch.cuda.stream(self._stream):
            for block_id in self._blocks:
                self._staging[block_id, layer].copy_(self._kv[block_id, layer], non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        self._under_way.append((layer, arrived))
        while self._under_way and self._under_way[0][1].query():
            self._watcher.layer_written(self._under_way.popleft()[0])

    def finish(self) -> None:
        """Waits for the last copies."""
        while self._under_way:
            layer, arrived = self._under_way.popleft()
            arrived.synchronize()
            self._watcher.layer_written(layer)


def _touched(slices: Sequence[Slice], block_tokens: int) -> list[int]:
    """Blocks that get new KV."""
    return [block_id for part in slices for block_id in part.block_ids[part.start // block_tokens :]]
