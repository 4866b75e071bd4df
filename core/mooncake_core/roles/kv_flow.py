"""One request's KV in a prefill instance: its prefix comes in and its blocks go out while it is computed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mooncake_core.roles.instance import Instance
from mooncake_core.roles.kv_arrival import KVArrival
from mooncake_core.roles.kv_departure import KVDeparture, PoolTarget
from mooncake_core.store.reading import Reading
from mooncake_core.wire.messages.serving import Prefill


class KVFlow:
    """What an engine loop follows a sequence with (inference.loop.Flow). By layer, or, where the message says so, all of
    the prefix before and all of the KV after the computation."""

    def __init__(
        self,
        instance: Instance,
        message: Prefill,
        blocks: Sequence[int],
        pool: PoolTarget,
        reading: Reading | None,
    ) -> None:
        self._instance = instance
        self._message = message
        self._blocks = blocks
        self._pool = pool
        self._reading = reading
        self._layers = instance.info.layout.num_layers
        self._arrival: KVArrival | None = None
        self._arriving: asyncio.Task[None] | None = None
        self._departure: KVDeparture | None = None
        self.cached_blocks = 0
        self.queued_at_s = 0.0
        """When the sequence was given to the engine."""
        self.engine_s = 0.0
        """How long the engine has computed its chunks."""
        self.computed_at_s = 0.0
        """When the last layer of the last chunk was computed."""

    @property
    def failure(self) -> str:
        """Why what was computed is worthless; empty when it is good."""
        return self._arrival.failure if self._arrival else ""

    @property
    def departure_failure(self) -> str:
        """Why the decode instance does not have all KV; empty when it has."""
        return self._departure.failure if self._departure else "the prefill was given up"

    def cached_tokens_by_tier(self) -> dict[str, int]:
        """Tokens of the prefix by where their block lay: DRAM or a tier."""
        if not self.cached_blocks or self._reading is None:
            return {}
        blocks = Counter(self._reading.tier(block) for block in range(self.cached_blocks))
        return {tier: number * self._instance.block_tokens for tier, number in blocks.items()}

    async def begin(self) -> None:
        """Brings as much of the prefix as the computation needs to begin."""
        if self._reading is not None:
            arrival = KVArrival(self._instance, self._reading, self._blocks, self._prefix_arrived)
            self.cached_blocks = await arrival.begin()
            if self.cached_blocks:
                self._arrival = arrival
        self._departure = KVDeparture(self._instance, self._message, self._blocks, self.cached_blocks, self._pool)
        if self._arrival is None:
            return
        if self._message.by_layer:
            self._departure.prefix_arrived(0, self._arrival.num_layers)
        if self._arrival.num_layers == self._layers:
            self._record_arrival()
        elif self._message.by_layer:
            self._arriving = asyncio.get_running_loop().create_task(self._arrival.run())
            self._arriving.add_done_callback(self._record_arrival)
        else:
            await self._arrival.run(layers_at_once=self._layers)
            self._record_arrival()

    def wait_for_layer(self, layer: int) -> None:
        if self._arrival is not None:
            self._arrival.wait_for_layer(layer)

    def layer_written(self, layer: int, end: int) -> None:
        if self._message.by_layer and self._departure is not None:
            self._departure.computed(end, layer + 1)

    def chunk_computed(self, start: int, end: int, layer_times_s: list[float]) -> str:
        spans = self._instance.context.spans
        request_id = self._message.request_id
        if not self.computed_at_s:
            spans.add(request_id, "wait for engine", self.queued_at_s, layer_times_s[0])
        self.computed_at_s = layer_times_s[-1]
        self.engine_s += layer_times_s[-1] - layer_times_s[0]
        spans.add(request_id, "compute chunk", layer_times_s[0], layer_times_s[-1], start=start, tokens=end - start)
        for layer in range(self._layers):
            spans.add(request_id, f"layer {layer}", layer_times_s[layer], layer_times_s[layer + 1], start=start)
        return self.failure

    async def delivered(self) -> None:
        """Waits until the decode instance has all KV; the computation must be over."""
        assert self._departure is not None  # begun before anything is computed
        if not self._message.by_layer:
            self._instance.engine.stage_out(self._blocks)
            self._departure.prefix_arrived(0, self._layers)
            self._departure.computed(len(self._message.token_ids), self._layers)
        await self._departure.delivered()

    async def pooled(self) -> None:
        """Waits until the pool has all new blocks."""
        if self._departure is not None:
            await self._departure.pooled()

    async def abort(self) -> None:
        """Ends what is under way; returns when nothing moves to or from the blocks any more. Harmless at the end."""
        if self._arriving is not None:
            self._arriving.cancel()
            await asyncio.gather(self._arriving, return_exceptions=True)
        if self._departure is not None:
            await self._departure.abort()

    def _prefix_arrived(self, layer: int) -> None:
        # The first layers come before it is known where the rest goes: `begin` sends them on.
        if self._message.by_layer and self._departure is not None:
            self._departure.prefix_arrived(layer, layer + 1)

    def _record_arrival(self, _: Any = None) -> None:
        assert self._arrival is not None  # only then there is something to record
        assert self._reading is not None
        times_s = self._arrival.times_s
        for layer, (before, there) in enumerate(zip([times_s[0], *times_s], times_s, strict=False)):
            self._instance.context.spans.add(
                self._message.request_id,
                "fetch prefix",
                before if layer else self._arrival.began_at_s,
                there,
                layer=layer,
                blocks=self.cached_blocks,
                bytes=self.cached_blocks * self._instance.layer_bytes,
                path="+".join(self._reading.bytes_by_path),
            )
