"""Sets up the mapping of a peer's memory beside the work: else each page's first copy waits for the kernel to do so, which takes
longer than the copy."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.populate import populate, yield_to_others

CHUNK_BYTES: Final = 4 << 20
SMALLEST_BYTES: Final = 4 << 20
"""Less is not worth a thread."""
MOST_BYTES: Final = 4 << 30
"""Of one region, from its beginning: what is used first. Each GiB costs 2 MiB of page tables in each process that maps it."""
GROWING_PAUSE_S: Final = 0.05
GROWING_PATIENCE_S: Final = 5.0
"""So long without any, the peer does not take memory ahead: its pages are not to be made here, at this process's expense."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """Memory of a peer that was just mapped."""

    memory: memoryview
    descriptor: int
    """Of its own, to be closed."""
    write: bool
    is_used: Callable[[], bool]


class Ahead:
    """One thread, once there is something to do."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Mapped | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, memory: memoryview, descriptor: int, *, write: bool, is_used: Callable[[], bool]) -> None:
        """Goes through a mapping while it `is_used`. Returns at once."""
        if memory.nbytes < SMALLEST_BYTES:
            return
        try:
            own = os.dup(descriptor)
        except OSError:  # out of descriptors: it goes without
            return
        self._work.put(Mapped(memory, own, write, is_used))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shm-ahead", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Returns when no mapping is touched any more. Idempotent."""
        self._closing.set()
        self._work.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        yield_to_others()
        while (mapped := self._work.get()) is not None:
            try:
                self._go_through(mapped)
            finally:
                os.close(mapped.descriptor)
            del mapped  # or its memory would live until the next one comes

    def _go_through(self, mapped: Mapped) -> None:
        address = address_of(mapped.memory)
        end = min(mapped.memory.nbytes, MOST_BYTES)
        start = 0
        while start < end:
            there = self._wait_for_pages(mapped, start)
            if there <= start:
                return
            stop = min(start + CHUNK_BYTES, there, end)
            if populate(address + start, stop - start, write=mapped.write):
                return
            start = stop

    def _wait_for_pages(self, mapped: Mapped, start: int) -> int:
        """Where the pages end that the peer has taken from `start` on; `start` where there are none, and will be none."""
        waited_s = 0.0
        while mapped.is_used() and not self._closing.is_set():
            try:
                if os.lseek(mapped.descriptor, start, os.SEEK_DATA) == start:
                    return os.lseek(mapped.descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but holes
                    return start
            if waited_s >= GROWING_PATIENCE_S:
                return start
            self._closing.wait(GROWING_PAUSE_S)
            waited_s += GROWING_PAUSE_S
        return start
