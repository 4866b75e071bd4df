"""Everything in the calling thread: it asks the master and moves the bytes itself, so that no other one has to wake up."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final, TypeVar

from mooncake_core.store import checksums
from mooncake_core.store.carrying import Job
from mooncake_core.store.width import Way, Widths
from mooncake_core.transfer.batch import Transfer
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.blocking import BlockingClient
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.memory import SegmentDescriptor

TOGETHER_BYTES: Final = 1 << 20
"""So much is worth several threads that move it at the same time."""
MOST_TOGETHER: Final = 8
"""Threads that one call uses; it takes as many nodes to need them all."""
HAS_CORES: Final = len(os.sched_getaffinity(0)) > 1

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
        self._widths = Widths()
        self._helpers = ThreadPoolExecutor(MOST_TOGETHER, thread_name_prefix="store-helper")

    async def call_surely(
        self, message: Message, reply_type: type[M], *, timeout_s: float
    ) -> tuple[M, BaseException | None]:
        return self._client.call_surely(message, reply_type, timeout_s=timeout_s)

    def width(self, kind: Kind, segment: SegmentDescriptor, num_bytes: int) -> int:
        return self._widths.choose(self._way(kind, segment, num_bytes)) if HAS_CORES else 1

    async def move(
        self,
        kind: Kind,
        jobs: Sequence[Job],
        *,
        timeout_s: float,
        in_order: bool = False,
        beside: checksums.Fed = (),
        divided_bytes: int = 0,
    ) -> tuple[list[Transfer], BaseException | None]:
        until = time.monotonic() + timeout_s
        if sum([job.ends.num_bytes for job in jobs]) < TOGETHER_BYTES:
            moved = [self._move(kind, job, until, in_order) for job in jobs]
            checksums.feed_now(beside)
            return moved, None
        begun = time.monotonic()
        moved = self._move_together(kind, jobs, until, in_order, beside)
        if divided_bytes and len({id(job.segment) for job in jobs}) == 1:
            way = self._way(kind, jobs[0].segment, divided_bytes)
            self._widths.note(way, len(jobs), divided_bytes, time.monotonic() - begun)
        return moved, None

    def close(self) -> None:
        """Ends the threads that help; what they move must have ended, or be about to. Idempotent."""
        self._helpers.shutdown()

    def writes_in_order(self, segment: SegmentDescriptor) -> bool:
        return self._engine.writes_in_order(segment)

    async def feed(self, pairs: checksums.Fed) -> None:
        checksums.feed_now(pairs)

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        return await work

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - a ThreadCarrier blocks

    def _way(self, kind: Kind, segment: SegmentDescriptor, num_bytes: int) -> Way:
        return Way(kind, self._engine.path_to(segment), num_bytes.bit_length())

    def _move_together(
        self, kind: Kind, jobs: Sequence[Job], until: float, in_order: bool, beside: checksums.Fed
    ) -> list[Transfer]:
        """Threads take one job after the other: while one waits for a far end, another moves bytes; and no node has to wait for
        a slow one."""
        moved: dict[int, Transfer] = {}
        waiting = deque(enumerate(jobs))

        def work() -> None:
            while True:
                try:
                    index, job = waiting.popleft()
                except IndexError:
                    return
                moved[index] = self._move(kind, job, until, in_order)

        helping: list[Future[None]] = []
        try:
            with contextlib.suppress(RuntimeError):  # the interpreter is about to end: it goes without
                helping += (self._helpers.submit(work) for _ in range(min(len(jobs), MOST_TOGETHER) - 1))
            checksums.feed_now(beside)
            work()
        except BaseException:  # an interrupt
            waiting.clear()
            raise
        finally:
            _outwait([helper for helper in helping if not helper.cancel()])
        return [moved[index] for index in range(len(jobs))]

    def _move(self, kind: Kind, job: Job, until: float, in_order: bool) -> Transfer:
        left_s = max(0.0, until - time.monotonic())
        transfers = [(job.ends.near, job.ends.far)]
        (moved,) = self._engine.move(kind, job.segment, transfers, timeout_s=left_s, in_order=in_order)
        return moved


def _outwait(helping: Sequence[Future[None]]) -> None:
    """Waits for their ends: the pieces are in use until then, an interrupt does not change that."""
    interrupt: BaseException | None = None
    while any(not helper.done() for helper in helping):
        try:
            wait(helping)
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
    for helper in helping:
        helper.result()
