"""The control page: which exports of a process are live, and who touches their memory just now.

Each export has a slot: a generation number, 0 when withdrawn, and the byte of the page's file at the slot's place as a lock.
An initiator holds that byte locked, shared, while it copies; withdrawing zeroes the generation and then locks the byte for
itself alone, which waits for every copy under way. The kernel drops the locks of a process that dies.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from typing import Final

from mooncake_core.transfer.shared_memory import SharedMemory

SLOTS: Final = 1 << 16
PAGE_BYTES: Final = SLOTS * 8
_FLOCK: Final = struct.Struct("@hhqqi4x")
_LONGEST_PAUSE_S: Final = 0.005


class ControlPage:
    """The owner's side."""

    def __init__(self) -> None:
        self._memory = SharedMemory("shm-control", PAGE_BYTES)
        self.fd = self._memory.descriptor
        self._generations = self._memory.view.cast("Q")
        self._lock = threading.Lock()
        self._free = list(reversed(range(SLOTS)))
        self._next_generation = 1

    def open_slot(self) -> tuple[int, int] | None:
        """(slot, generation) of a new export; None when all slots are taken."""
        with self._lock:
            if not self._free:
                return None
            slot, generation = self._free.pop(), self._next_generation
            self._next_generation += 1
            self._generations[slot] = generation
            return slot, generation

    def open_for_reading(self) -> int:
        """A descriptor for a peer, which closes it."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def is_live(self, slot: int, generation: int) -> bool:
        """Whether the export was not withdrawn."""
        return 0 <= slot < SLOTS and self._generations[slot] == generation

    def close_slot(self, slot: int, patience_s: float | None) -> bool:
        """Withdraws an export: no new copy can begin, and those under way are waited for. False when they outlast patience."""
        self._generations[slot] = 0
        deadline = None if patience_s is None else time.monotonic() + patience_s
        pause_s = 0.0
        while not _ask(self.fd, _lock_of(fcntl.F_WRLCK, slot)):
            if deadline is not None and time.monotonic() > deadline:
                return False
            pause_s = min(_LONGEST_PAUSE_S, pause_s + 1e-5)
            time.sleep(pause_s)
        _tell(self.fd, _lock_of(fcntl.F_UNLCK, slot))
        with self._lock:
            self._free.append(slot)
        return True

    def close(self) -> None:
        """Frees the page here; peers that mapped it keep theirs."""
        self._generations.release()
        self._memory.close()


class PeerPage:
    """A peer's control page, seen by an initiator. Used by one thread at a time: its Peer has a lock."""

    def __init__(self, fd: int) -> None:
        # A descriptor received from the peer shares its locks with the peer: only one opened here has locks of its own.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(self._fd, PAGE_BYTES, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            os.close(self._fd)
            raise
        self._generations = memoryview(self._map).cast("Q")
        self._holders: dict[int, int] = {}
        self._locks: dict[int, tuple[bytes, bytes]] = {}
        """How a slot is locked, and unlocked, in the kernel's words: most copies are of few slots."""

    def enter(self, slot: int, generation: int) -> bool:
        """Begins a copy; False when the export was withdrawn. `leave` must follow a True."""
        holders = self._holders.get(slot, 0)
        if holders == 0 and not _ask(self._fd, self._words(slot)[0]):
            return False  # only withdrawing locks it
        if self._generations[slot] != generation:
            if holders == 0:
                _tell(self._fd, self._words(slot)[1])
            return False
        self._holders[slot] = holders + 1
        return True

    def leave(self, slot: int) -> None:
        """Ends a copy."""
        holders = self._holders.pop(slot) - 1
        if holders:
            self._holders[slot] = holders
        else:
            _tell(self._fd, self._words(slot)[1])

    def _words(self, slot: int) -> tuple[bytes, bytes]:
        words = self._locks.get(slot)
        if words is None:
            words = self._locks[slot] = _lock_of(fcntl.F_RDLCK, slot), _lock_of(fcntl.F_UNLCK, slot)
        return words

    def close(self) -> None:
        """To be called when no copy is under way."""
        self._generations.release()
        self._map.close()
        os.close(self._fd)


def _lock_of(kind: int, byte: int) -> bytes:
    """A lock on one byte, as fcntl takes it."""
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _ask(fd: int, lock: bytes) -> bool:
    """Takes a lock; False when somebody else has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _tell(fd: int, lock: bytes) -> None:
    """Gives a lock back."""
    try:  # noqa: SIM105 - suppress() takes as long as the call
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except OSError:  # the peer's page may be gone with the process
        pass
