"""Runs an engine: one thread computes step after step while there is something to compute, and sleeps otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from mooncake_core.errors import EngineError, KVLost, MooncakeError, RequestCancelled
from mooncake_core.inference.batching import Batching, Emitted, Sequence
from mooncake_core.inference.contract import Engine, Slice
from mooncake_core.wire.messages.membership import InstanceLoad
from mooncake_core.wire.messages.serving import FinishReason, Logprobs

STEP_WEIGHT: Final = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Output:
    """A new token, and when the step that made it ran (time.time())."""

    token_id: int
    finish_reason: FinishReason | None
    started_s: float
    ended_s: float
    logprobs: Logprobs | None = None


class Flow(Protocol):
    """A sequence's KV on its way in and out, followed while it is computed."""

    def wait_for_layer(self, layer: int) -> None:
        """In the computing thread: returns when the KV of earlier positions is in the blocks, or never will be."""

    def layer_written(self, layer: int, end: int) -> None:
        """On the event loop: this layer's KV of all positions before `end` lies in the blocks."""

    def chunk_computed(self, start: int, end: int, layer_times_s: list[float]) -> str:
        """In the computing thread: positions start to end are done. The times are those at which each layer began, and the
        end. Returns why the result is worthless, empty when it is good."""


@dataclass(slots=True)
class _Run:
    """A sequence that somebody waits for."""

    on_output: Callable[[Output], None]
    ended: asyncio.Future[None]

    def end(self, error: MooncakeError | None = None) -> None:
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)


class EngineLoop:
    """The asyncio face of an engine and its batching. `run` belongs to the event loop that made this object."""

    def __init__(self, engine: Engine, batching: Batching) -> None:
        self._engine = engine
        self._batching = batching
        self._changed = threading.Condition()
        self._closing = False
        self._runs: dict[int, _Run] = {}
        self._flows: dict[int, Flow] = {}
        self._step_s = 0.0
        self.on_freed: Callable[[], None] = lambda: None
        """Called on the event loop when a step has ended that used blocks of released sequences: they are free now."""
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
        self._deliver_error([sequence_id], RequestCancelled(f"sequence {sequence_id} was released"))

    async def run(self, sequence: Sequence, on_output: Callable[[Output], None], flow: Flow | None = None) -> None:
        """Computes a sequence; `on_output` is given each new token, on the event loop. Returns after the last one. When it is
        cancelled the sequence stops; its blocks stay reserved.

        Raises:
            KVLost: the flow says that what was computed is worthless.
            RequestCancelled: the sequence was released, or the loop is closed.
            EngineError: the engine failed.
        """
        run = _Run(on_output, self._loop.create_future())
        with self._changed:
            self._batching.start(sequence)
            if flow is not None:
                self._flows[sequence.sequence_id] = flow
            self._runs[sequence.sequence_id] = run
            self._changed.notify()
        try:
            await run.ended
        finally:
            with self._changed:
                self._flows.pop(sequence.sequence_id, None)
                if self._runs.get(sequence.sequence_id) is run:
                    del self._runs[sequence.sequence_id]
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
        self._deliver_error(list(self._runs), RequestCancelled("the engine is shutting down"))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or not self._batching.idle)
                if self._closing:
                    return
                num_free = self._batching.num_free
                slices = self._batching.plan()
                flows = [(flow, part) for part in slices if (flow := self._flows.get(part.sequence_id))]
            started = time.time()
            watcher = _Watcher(flows, self._from_thread) if flows else None
            try:
                tokens = self._engine.step(slices, watcher)
                ended = time.time()
                lost = watcher.finish(ended) if watcher else {}
                with self._changed:
                    self._step_s += STEP_WEIGHT * (ended - started - self._step_s)
                    for sequence_id in lost:
                        self._batching.stop(sequence_id)
                    emitted = self._batching.complete(tokens, self._engine.logprobs)
            except Exception as error:  # an engine and its libraries may do anything; the loop must go on
                self._failed(error)
                continue
            finally:
                if self._batching.num_free > num_free:
                    self._from_thread(self.on_freed)
            for sequence_id, reason in lost.items():
                self._from_thread(self._deliver_error, [sequence_id], KVLost(reason))
            if emitted:
                self._from_thread(self._deliver, emitted, started, ended)

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

    def _deliver(self, emitted: list[Emitted], started_s: float, ended_s: float) -> None:
        for item in emitted:
            run = self._runs.get(item.sequence_id)
            if run is not None and not run.ended.done():
                run.on_output(Output(item.token_id, item.finish_reason, started_s, ended_s, item.logprobs))
                if item.finish_reason:
                    run.end()

    def _deliver_error(self, sequence_ids: list[int], error: MooncakeError) -> None:
        for sequence_id in sequence_ids:
            run = self._runs.pop(sequence_id, None)
            if run is not None:
                run.end(error)


class _Watcher:
    """Follows one step for all flows in it."""

    def __init__(self, flows: SequenceOf[tuple[Flow, Slice]], from_thread: Callable[..., None]) -> None:
        self._flows = flows
        self._from_thread = from_thread
        self._times_s: list[float] = []

    def before_layer(self, layer: int) -> None:
        self._times_s.append(time.time())
        for flow, part in self._flows:
            if part.start:
                flow.wait_for_layer(layer)

    def layer_written(self, layer: int) -> None:
        self._from_thread(self._tell, layer)

    def finish(self, ended_s: float) -> dict[int, str]:
        """The sequences whose result is worthless, and why."""
        times_s = [*self._times_s, ended_s]
        reasons = {
            part.sequence_id: flow.chunk_computed(part.start, part.start + len(part.token_ids), times_s)
            for flow, part in self._flows
        }
        return {sequence_id: reason for sequence_id, reason in reasons.items() if reason}

    def _tell(self, layer: int) -> None:
        for flow, part in self._flows:
            flow.layer_written(layer, part.start + len(part.token_ids))
