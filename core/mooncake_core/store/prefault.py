"""Takes a segment's memory from the machine beside the work: the kernel hands out and clears each page on its first use, which
is slower than the copy of a put itself. Somebody pays for it in any case, so it is not put off while others work."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import Final

from mooncake_core.transfer.populate import populate
from mooncake_core.units import format_size

CHUNK_BYTES: Final = 16 << 20
KEEP_FREE_BYTES: Final = 256 << 20
"""Pages that nobody asked for yet are not worth the last memory of a machine."""

_log = logging.getLogger(__name__)


class Prefault:
    """A thread that goes through a memory once, from its beginning, without changing what is there."""

    def __init__(self, name: str, memory: memoryview, *, available_bytes: Callable[[], int]) -> None:
        """`memory` begins at a page, as a mapping does; `available_bytes` tells what the machine has left."""
        self._name = name
        self._memory = memory[:]
        self._available_bytes = available_bytes
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefault", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within that time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Returns when it does not use the memory any more. Idempotent."""
        self._stopping.set()
        self._thread.join()
        self._memory.release()

    def _run(self) -> None:
        num_bytes = self._memory.nbytes
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for start in range(0, num_bytes, CHUNK_BYTES):
            if self._stopping.is_set():
                return
            available = self._available_bytes()
            if available < KEEP_FREE_BYTES + CHUNK_BYTES:
                self._leave(start, f"the machine, or its cgroup, has only {format_size(available)} left")
                return
            number = populate(address + start, min(CHUNK_BYTES, num_bytes - start), write=True)
            if number:
                if number != errno.EINVAL:  # a kernel that does not know it
                    self._leave(start, os.strerror(number))
                return

    def _leave(self, start: int, reason: str) -> None:
        _log.warning(
            "%s took %s of its %s from the machine, and takes the rest when it is used: %s",
            self._name,
            format_size(start),
            format_size(self._memory.nbytes),
            reason,
        )
