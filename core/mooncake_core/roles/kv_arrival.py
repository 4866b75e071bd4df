"""A request's cached prefix on its way in: read from the pool layer by layer, just before each layer needs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from mooncake_core.errors import MooncakeError
from mooncake_core.roles.instance import Instance
from mooncake_core.roles.kv_departure import LEAST_BYTES
from mooncake_core.store.reading import Reading

PATIENCE_S = 10.0


class KVArrival:
    """Fills the first blocks of a sequence. `begin` and `run` belong to the event loop, `wait_for_layer` to the engine."""

    def __init__(
        self, instance: Instance, reading: Reading, blocks: Sequence[int], on_layer: Callable[[int], None]
    ) -> None:
        self._instance = instance
        self._reading = reading
        self._blocks = blocks
        self._on_layer = on_layer
        self._layers = instance.info.layout.num_layers
        self._arrived = threading.Condition()
        self.num_layers = 0
        """Those that have come."""
        self.num_blocks = 0
        """Blocks of the prefix; known once `begin` has returned."""
        self.failure = ""
        self.began_at_s = time.time()
        self.times_s: list[float] = []
        """When each layer was there."""

    async def begin(self) -> int:
        """Brings the first layer, or all where they are too few bytes for several transfers; returns how many blocks, from
        the beginning, can be had."""
        self._cut(self._reading.good)
        layers = 1 if self.num_blocks * self._instance.block_bytes > LEAST_BYTES else self._layers
        if self.num_blocks:
            await self._bring(0, layers)
            self._cut(self._reading.good)
        if self.num_blocks:
            if layers == self._layers and not self._is_whole():
                self.num_blocks = 0
            else:
                self._came(layers)
        return self.num_blocks

    async def run(self, layers_at_once: int = 1) -> None:
        """Brings the other layers; what goes wrong is a failure, never an exception."""
        try:
            for first in range(self.num_layers, self._layers, layers_at_once):
                last = min(self._layers, first + layers_at_once)
                await self._bring(first, last)
                good = all(self._reading.good[: self.num_blocks])
                if not good or (last == self._layers and not self._is_whole()):
                    self._fail("blocks of the prefix were lost or damaged while they were read")
                    return
                self._came(last)
        except MooncakeError as error:
            self._fail(str(error))
        except BaseException:
            self._fail("the request was cancelled")
            raise

    def wait_for_layer(self, layer: int) -> None:
        """In the computing thread: returns when the layer has come, or will never come."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: self.num_layers > layer or self.failure, PATIENCE_S):
                self.failure = f"layer {layer} of the prefix did not come within {PATIENCE_S:g}s"
        if not self.failure:
            self._instance.engine.stage_in(self._blocks[: self.num_blocks], layer)

    async def _bring(self, first: int, last: int) -> None:
        parts = {
            index: [self._instance.layers(block, first, last)]
            for index, block in enumerate(self._blocks[: self.num_blocks])
        }
        await self._reading.read(parts)

    def _cut(self, good: Sequence[bool]) -> None:
        """Keeps what is there without a gap from the beginning."""
        self.num_blocks = next((index for index, item in enumerate(good) if not item), len(good))
        self._reading.drop(range(self.num_blocks, len(good)))

    def _is_whole(self) -> bool:
        return all(self._reading.finish()[: self.num_blocks])

    def _came(self, num_layers: int) -> None:
        with self._arrived:
            before, self.num_layers = self.num_layers, num_layers
            self._arrived.notify_all()
        for layer in range(before, num_layers):
            self.times_s.append(time.time())
            self._on_layer(layer)

    def _fail(self, reason: str) -> None:
        with self._arrived:
            self.failure = self.failure or reason
            self._arrived.notify_all()
