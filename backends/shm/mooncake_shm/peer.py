"""The initiator's side: a peer's memory, mapped here for as long as the peer lives."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import threading
from collections.abc import Sequence

from mooncake_core.errors import AuthenticationFailed, PathFailed, StaleSegment
from mooncake_shm.control import PeerPage
from mooncake_shm.introduction import Gone, Have, Want, check_user, receive_news, send


class Peer:
    """One process whose memory is mapped. One thread, that of Peers, talks to it and ends it; many copy. Nothing blocks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._maps: dict[tuple[int, bool], memoryview] = {}
        self._page: PeerPage | None = None
        self._users = 0
        self._ended = False
        self._connected = False
        self._socket: socket.socket | None = None

    def fileno(self) -> int:
        """Readable when the peer has answered, and once it has ended; -1 while there is no connection."""
        return self._socket.fileno() if self._socket and self._connected else -1

    def connect(self) -> bool:
        """Whether there is a connection; if not, the peer has a long queue: try again later.

        Raises:
            PathFailed: the peer is gone (ECONNREFUSED), or the connection could not be made.
        """
        if self._connected:
            return True
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            self._socket.connect("\0" + self.name)
            check_user(self._socket)
        except BlockingIOError:
            return False
        except (OSError, AuthenticationFailed) as error:
            raise self.failed(error) from error
        self._connected = True
        return True

    def ask(self, want: Want) -> None:
        """Wishes for memory; the answer is among the news.

        Raises:
            PathFailed: the peer has ended.
        """
        assert self._socket is not None  # connected
        try:
            send(self._socket, want)
        except OSError as error:
            raise self.failed(error) from error

    def news(self) -> tuple[Have | Gone, list[int]] | None:
        """What the peer has said, with descriptors that the caller closes; None when there is nothing more.

        Raises:
            PathFailed: the peer has ended.
        """
        assert self._socket is not None  # connected
        try:
            return receive_news(self._socket)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self.failed(error) from error

    def map(self, want: Want, have: Have, descriptors: Sequence[int]) -> memoryview:
        """Takes what was wished for, and returns it.

        Raises:
            PathFailed: it could not be opened there, or not be mapped here.
        """
        try:
            if have.errno:
                raise OSError(have.errno, os.strerror(have.errno))
            if len(descriptors) < 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # here: the kernel dropped them
            page, region = descriptors
            access = mmap.ACCESS_WRITE if want.write else mmap.ACCESS_READ
            memory = memoryview(mmap.mmap(region, have.length, access=access))
            with self._lock:
                if self._page is None:
                    self._page = PeerPage(page)
                self._maps[want.region, want.write] = memory
            return memory
        except (OSError, ValueError) as error:
            raise self.failed(error) from error

    def unmap(self, region: int) -> None:
        """Forgets a region; its memory goes with the last copy under way."""
        with self._lock:
            self._maps.pop((region, False), None)
            self._maps.pop((region, True), None)

    def is_mapped(self, region: int, *, write: bool) -> bool:
        """Whether a transfer can begin without asking the peer."""
        return (region, write) in self._maps and not self._ended

    def enter(self, want: Want) -> memoryview:
        """The region's memory, for a copy that `leave` must follow.

        Raises:
            PathFailed: the peer has ended.
            StaleSegment: the export was withdrawn, or the region unregistered.
        """
        with self._lock:
            if self._ended:
                raise self._gone()
            memory = self._maps.get((want.region, want.write))
            if memory is None or self._page is None:
                raise stale()
            if not self._page.enter(want.slot, want.generation):
                raise self._gone() if self._has_hung_up() else stale()
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
            self._ended = True
            if self._socket:
                self._socket.close()
            self._unmap_unused()

    def failed(self, error: Exception) -> PathFailed:
        """An error in words that name the peer."""
        reason = getattr(error, "strerror", None) or str(error)
        number = getattr(error, "errno", None) or errno.ECONNABORTED
        return PathFailed(f"{self.name} cannot be reached over shm: {reason}", path="shm", errno=number)

    def _unmap_unused(self) -> None:
        if self._users:
            return
        # The maps themselves go with the last view of them.
        self._maps.clear()
        if self._page is not None:
            page, self._page = self._page, None
            page.close()

    def _has_hung_up(self) -> bool:
        assert self._socket is not None  # it was mapped
        with contextlib.suppress(BlockingIOError):
            try:
                return not self._socket.recv(1, socket.MSG_PEEK)
            except ConnectionError:
                return True
        return False

    def _gone(self) -> PathFailed:
        return PathFailed(f"the process behind {self.name} has ended", path="shm", errno=errno.ECONNRESET)


def stale() -> StaleSegment:
    """For a wish that the peer does not know."""
    return StaleSegment("the segment was withdrawn, or its process was started anew")
