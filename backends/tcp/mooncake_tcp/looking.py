"""Looking for a moment at a connection before sleeping until something comes by it. See docs/decisions/0064."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Sequence
from typing import Final

from mooncake_core import busy_poll
from mooncake_tcp.frames import MAX_VECTORS, after, receive_all

CROWDED_S: Final = 1e-3
"""Longer than it takes to copy what fits into the sockets' buffers: somebody else had the interpreter."""
PAUSE: Final = 64
"""Payloads that are slept for then."""


class Looking:
    """Of the thread that receives on one connection."""

    def __init__(self, sock: socket.socket, most_s: float) -> None:
        """With 0 nobody looks; nor at TLS, whose library keeps bytes that have come where nobody sees them."""
        self._socket = sock
        self._most_s = most_s if type(sock) is socket.socket else 0.0
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._pause = 0
        """Payloads that nobody looks for."""

    def has_some(self) -> bool:
        """Whether something is there now: bytes, or the end."""
        return bool(self._poller.poll(0))

    def look(self) -> bool:
        """Whether something is there, after looking for so long at most."""
        return self._most_s > 0 and busy_poll.look(self._poller.poll, self._most_s)

    def receive_all(self, views: Sequence[memoryview], start_bytes: int = 0) -> None:
        """As `frames.receive_all`, but takes bytes as they come: who sleeps until all are there is woken again and again, for
        the room that the sender needs."""
        if not self._most_s or self._pause:
            self._pause = max(0, self._pause - 1)
            receive_all(self._socket, views, start_bytes)
            return
        left = after(views, start_bytes)
        for first in range(0, len(left), MAX_VECTORS):
            window = self._receive_looking(after(left[first : first + MAX_VECTORS], 0))
            if window:
                receive_all(self._socket, [memoryview(view) for view in (*window, *left[first + MAX_VECTORS :])])
                return

    def _receive_looking(self, window: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
        """What is left to who sleeps: all of it where nothing comes, or where others want the interpreter, which is given to them
        with each look."""
        while window:
            began_s = time.monotonic()
            if not self.look():
                return window
            received = self._socket.recvmsg_into(window)[0]
            if received == 0:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
            window = after(window, received)
            if time.monotonic() - began_s > self._most_s + CROWDED_S:
                self._pause = PAUSE
                return window
        return window
