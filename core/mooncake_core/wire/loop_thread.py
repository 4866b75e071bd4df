"""An event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from mooncake_core.errors import PeerUnreachable

CLOSE_S: Final = 5.0

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for callers in other threads. The thread is a daemon."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        """Nothing begins any more."""
        self._thread = threading.Thread(target=self._serve, name=f"loop-{name}", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result. Also an interrupted call (KeyboardInterrupt) returns only when the work has ended: until then it may
        use the caller's memory.

        Raises:
            PeerUnreachable: this was closed, before or meanwhile.
        """
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        job = _Job(work, outcome)
        try:
            self._begin(job, work)
            return outcome.result()
        except BaseException:  # an interrupt may come anywhere here
            if job.is_begun and not outcome.done():
                self._loop.call_soon_threadsafe(job.cancel)
                concurrent.futures.wait([outcome])
            raise

    def run_surely(self, work: Coroutine[Any, Any, T]) -> tuple[T, BaseException | None]:
        """As `run`, but an interrupt does not cancel the work: it is returned beside the result."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        job = _Job(work, outcome)
        interrupt: BaseException | None = None
        self._begin(job, work)
        while not outcome.done():
            try:
                concurrent.futures.wait([outcome])
            except BaseException as error:
                interrupt = error
        if interrupt is not None and outcome.exception() is not None:
            raise interrupt
        return outcome.result(), interrupt

    def call_soon(self, work: Callable[[], None]) -> None:
        """Has it called on the loop; nothing happens where this was closed."""
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(work)

    def _begin(self, job: _Job[T], work: Coroutine[Any, Any, T]) -> None:
        with self._lock:  # what begins, begins before the loop ends
            if not self._closed:
                job.is_begun = True
                self._loop.call_soon_threadsafe(job.begin)
        if not job.is_begun:
            work.close()
            raise _closed()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancels what runs, runs one thing more, and ends the thread. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(_finish(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


class _Job(Generic[T]):
    """Work on the loop whose outcome another thread waits for."""

    def __init__(self, work: Coroutine[Any, Any, T], outcome: concurrent.futures.Future[T]) -> None:
        self._work = work
        self._outcome = outcome
        self._task: asyncio.Task[T] | None = None
        self.is_begun = False
        """Or is to be."""

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work)
        self._task.add_done_callback(self._pass_on)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif not self._outcome.done():  # interrupted before it was to begin
            self._work.close()
            self._outcome.set_exception(_closed())

    def _pass_on(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._outcome.set_exception(_closed())
        elif (error := task.exception()) is not None:
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(task.result())


async def _finish(last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=CLOSE_S)
    await last()


def _closed() -> PeerUnreachable:
    return PeerUnreachable("the connection was closed")
