"""Memory with a descriptor, so that processes of the same host can map it; it ends with the last of them."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import Final

SEALS: Final = getattr(fcntl, "F_SEAL_SHRINK", 2) | getattr(fcntl, "F_SEAL_GROW", 4)
"""Its size never changes: a peer that mapped it can touch all of it at any time."""


class SharedMemory:
    """Zeroed, writable, and not in the file system: nothing is left of it after a crash."""

    def __init__(self, name: str, num_bytes: int) -> None:
        self.descriptor = os.memfd_create(f"mooncake-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, num_bytes)
            fcntl.fcntl(self.descriptor, getattr(fcntl, "F_ADD_SEALS", 1033), SEALS)
            self._map = mmap.mmap(self.descriptor, num_bytes)
        except OSError:
            os.close(self.descriptor)
            raise
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Gives it back; the memory itself goes with the last view of it. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            with contextlib.suppress(BufferError):  # somebody holds a part of it
                self.view.release()
                self._map.close()
