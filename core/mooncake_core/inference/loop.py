"""Runs an engine: one thread computes step after step while there is something to compute, and sleeps otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from mooncake_core.errors import EngineError, MooncakeError, RequestCancelled
from mooncake_core.inference.batching import Batching, Emitted, Sequence
from mooncake_core.inference.contract import Engine
from mooncake_core.wire.messages.membership import InstanceLoad

STEP_WEIGHT: Final = 0.2
Outbox = asyncio.Queue[Emitted | MooncakeError]

_log = logging.getLogger(__name__)


class EngineLoop:
    """The asyncio face of an engine and its batching. `run` belongs to the event loop that made this object."""

    def __init__(self, engine: Engine, batching: Batching) -> None:
        self._engine = engine
        self._batching = batching
        self._changed = threading.Condition()
        self._closing = False
        self._outboxes: dict[int, Outbox] = {}
        self._step_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def reserve(self, sequence_id: int, num_tokens: int) -> list[int]:
        """As Batching.reserve."""
        with self._changed:
            return self._batching.reserve(sequence_id, num_tokens)

    def release(self, sequence_id: int) -> None:
        """Ends a sequence, gives its blocks back; whoever waits for its tokens gets RequestCancelled."""
        with self._changed:
            self._batching.release(sequence_id)
            outbox = self._outboxes.pop(sequence_id, None)
        if outbox is not None:
            outbox.put_nowait(RequestCancelled(f"sequence {sequence_id} was released"))

    async def run(self, sequence: Sequence) -> AsyncGenerator[Emitted, None]:
        """Computes a sequence; yields its new tokens. Closing the iterator stops it; its blocks stay reserved."""
        outbox: Outbox = asyncio.Queue()
        with self._changed:
            self._batching.start(sequence)
            self._outboxes[sequence.sequence_id] = outbox
            self._changed.notify()
        try:
            while True:
                item = await outbox.get()
                if isinstance(item, MooncakeError):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            with self._changed:
                if self._outboxes.get(sequence.sequence_id) is outbox:
                    del self._outboxes[sequence.sequence_id]
                    self._batching.stop(sequence.sequence_id)

    def load(self) -> InstanceLoad:
        """What the instance reports of itself."""
        with self._changed:
            return msgspec.structs.replace(self._batching.load(), step_s=self._step_s)

    def check(self) -> list[str]:
        """As Batching.check."""
        with self._changed:
            return self._batching.check()

    async def close(self) -> None:
        """Waits for the step under way, then ends the thread. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        self._deliver_error(list(self._outboxes), RequestCancelled("the engine is shutting down"))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or not self._batching.idle)
                if self._closing:
                    return
                slices = self._batching.plan()
            started = time.monotonic()
            try:
                tokens = self._engine.step(slices)
            except Exception as error:  # an engine's libraries may raise anything; the loop must go on
                self._failed(error)
                continue
            with self._changed:
                self._step_s += STEP_WEIGHT * (time.monotonic() - started - self._step_s)
                emitted = self._batching.complete(tokens)
            self._from_thread(self._deliver, emitted)

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, MooncakeError):
            _log.error("the engine failed", exc_info=error)
            error = EngineError(f"the engine failed: {type(error).__name__}: {error}")
        with self._changed:
            failed = self._batching.fail()
        self._from_thread(self._deliver_error, failed, error)

    def _from_thread(self, callback: object, *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended; nobody waits for tokens
            self._loop.call_soon_threadsafe(callback, *arguments)  # type: ignore[arg-type]

    def _deliver(self, emitted: list[Emitted]) -> None:
        for item in emitted:
            outbox = self._outboxes.get(item.sequence_id)
            if outbox is not None:
                outbox.put_nowait(item)

    def _deliver_error(self, sequence_ids: list[int], error: MooncakeError) -> None:
        for sequence_id in sequence_ids:
            outbox = self._outboxes.pop(sequence_id, None)
            if outbox is not None:
                outbox.put_nowait(error)
