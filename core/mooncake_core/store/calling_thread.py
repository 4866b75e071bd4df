"""Everything in the calling thread: it asks the master and moves the bytes itself, so that no other one has to wake up."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

from mooncake_core.store import checksums
from mooncake_core.store.carrying import Job
from mooncake_core.transfer.batch import Batch, Transfer, TransferRequest
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.blocking import BlockingClient
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.memory import SegmentDescriptor

TOGETHER_BYTES: Final = 4 << 20
"""So much for several nodes is worth the threads that move it at the same time."""

M = TypeVar("M")
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for a ThreadCarrier alone: its waits block, so it is done at once."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise AssertionError("a client's logic waited for an event loop in a thread that has none")


class ThreadAsker:
    """Asks the master; blocks."""

    def __init__(self, client: BlockingClient) -> None:
        self._client = client

    async def call(self, message: Message, reply_type: type[M], *, timeout_s: float) -> M:
        return self._client.call(message, reply_type, timeout_s=timeout_s)


class ThreadCarrier:
    """A Carrier whose methods never wait for an event loop. Any number of threads."""

    def __init__(self, client: BlockingClient, engine: TransferEngine) -> None:
        self.master = ThreadAsker(client)
        self._client = client
        self._engine = engine

    async def call_surely(
        self, message: Message, reply_type: type[M], *, timeout_s: float
    ) -> tuple[M, BaseException | None]:
        return self._client.call_surely(message, reply_type, timeout_s=timeout_s)

    async def move(
        self, kind: Kind, jobs: Sequence[Job], *, timeout_s: float, in_order: bool = False, beside: checksums.Fed = ()
    ) -> tuple[list[Transfer], BaseException | None]:
        if len(jobs) > 1 and sum(job.ends.num_bytes for job in jobs) >= TOGETHER_BYTES:
            return self._move_together(kind, jobs, timeout_s, in_order, beside), None
        until = time.monotonic() + timeout_s
        moved: list[Transfer] = []
        for job in jobs:
            left_s = max(0.0, until - time.monotonic())
            transfers = [(job.ends.near, job.ends.far)]
            moved += self._engine.move(kind, job.segment, transfers, timeout_s=left_s, in_order=in_order)
        checksums.feed_now(beside)
        return moved, None

    def writes_in_order(self, segment: SegmentDescriptor) -> bool:
        return self._engine.writes_in_order(segment)

    async def feed(self, pairs: checksums.Fed) -> None:
        checksums.feed_now(pairs)

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        return await work

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - a ThreadCarrier blocks

    def _move_together(
        self, kind: Kind, jobs: Sequence[Job], timeout_s: float, in_order: bool, beside: checksums.Fed
    ) -> list[Transfer]:
        """Several nodes at the same time: their links may be what takes long."""
        batch = Batch(len(jobs))
        requests = [
            TransferRequest(kind, tuple(job.ends.near), job.segment, tuple(job.ends.far), in_order) for job in jobs
        ]
        try:
            self._engine.submit(batch, requests, timeout_s)
        except BaseException:  # interrupted: some may be under way, and use the pieces until then
            self._engine.wait(batch, timeout_s)
            raise
        try:
            checksums.feed_now(beside)
        finally:
            self._engine.wait_uninterrupted(batch)
        return batch.transfers
