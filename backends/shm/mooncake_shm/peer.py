"""The initiator's side: a peer's memory, mapped here for as long as the peer lives."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import threading

from mooncake_core.errors import AuthenticationFailed, PathFailed, StaleSegment
from mooncake_shm.control import PeerPage
from mooncake_shm.introduction import TIMEOUT_S, Want, check_user, receive_have, send


class Peer:
    """One process whose memory is mapped. Made by the first transfer to it; ends with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._maps: dict[tuple[int, bool], memoryview] = {}
        self._page: PeerPage | None = None
        self._users = 0
        self._ended = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(TIMEOUT_S)
        try:
            self._socket.connect("\0" + name)
            check_user(self._socket)
        except (OSError, AuthenticationFailed) as error:
            self._socket.close()
            raise self._failed(error) from error

    def fileno(self) -> int:
        """Readable once the peer has ended."""
        return self._socket.fileno()

    def is_mapped(self, region: int, *, write: bool) -> bool:
        """Whether a transfer can begin without asking the peer."""
        return (region, write) in self._maps and not self._ended

    def enter(self, want: Want) -> memoryview:
        """The region's memory, for a copy that `leave` must follow.

        Raises:
            PathFailed: the peer has ended.
            StaleSegment: the export was withdrawn.
        """
        with self._lock:
            if self._ended:
                raise self._gone()
            memory = self._maps.get((want.region, want.write)) or self._map(want)
            assert self._page is not None  # mapping brings it
            if not self._page.enter(want.slot, want.generation):
                raise self._gone() if self._has_hung_up() else _stale()
            self._users += 1
            return memory

    def leave(self, want: Want) -> None:
        """Ends a copy.

        Raises:
            PathFailed: the peer ended meanwhile: its memory is nobody's any more.
        """
        with self._lock:
            assert self._page is not None
            self._page.leave(want.slot)
            self._users -= 1
            if self._ended:
                self._unmap_unused()
                raise self._gone()

    def end(self) -> None:
        """Unmaps the peer's memory as soon as no copy is under way. Idempotent."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._socket.close()
            self._unmap_unused()

    def _map(self, want: Want) -> memoryview:
        descriptors: list[int] = []
        try:
            send(self._socket, want, [])
            have, descriptors = receive_have(self._socket)
            if not have.found:
                raise _stale()
            page, region = descriptors
            if self._page is None:
                self._page = PeerPage(page)
            access = mmap.ACCESS_WRITE if want.write else mmap.ACCESS_READ
            memory = memoryview(mmap.mmap(region, have.length, access=access))
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._maps[want.region, want.write] = memory
        return memory

    def _unmap_unused(self) -> None:
        if self._users:
            return
        # The maps themselves go with the last view of them.
        self._maps.clear()
        if self._page is not None:
            page, self._page = self._page, None
            page.close()

    def _has_hung_up(self) -> bool:
        with contextlib.suppress(BlockingIOError, TimeoutError):
            try:
                return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except ConnectionError:
                return True
        return False

    def _gone(self) -> PathFailed:
        return PathFailed(f"the process behind {self.name} has ended", path="shm", errno=errno.ECONNRESET)

    def _failed(self, error: Exception) -> PathFailed:
        reason = getattr(error, "strerror", None) or str(error)
        number = getattr(error, "errno", None) or errno.ECONNABORTED
        return PathFailed(f"{self.name} cannot be reached over shm: {reason}", path="shm", errno=number)


def _stale() -> StaleSegment:
    return StaleSegment("the segment was withdrawn, or its process was started anew")
