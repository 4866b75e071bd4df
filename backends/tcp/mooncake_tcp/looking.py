"""Looking for a moment at a connection before sleeping until something comes by it. See docs/decisions/0064."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Sequence

from mooncake_core import busy_poll
from mooncake_tcp.frames import MAX_VECTORS, after, receive_all


class Looking:
    """Of the thread that receives on one connection."""

    def __init__(self, sock: socket.socket, most_s: float) -> None:
        """With 0 nobody looks; nor at TLS, whose library keeps bytes that have come where nobody sees them."""
        self._socket = sock
        self._most_s = most_s if type(sock) is socket.socket else 0.0
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)

    def look(self) -> bool:
        """Whether something is there, after looking for so long at most."""
        return self._most_s > 0 and busy_poll.look(self._poller.poll, self._most_s)

    def receive_all(self, views: Sequence[memoryview], start_bytes: int = 0) -> None:
        """As `frames.receive_all`, but takes bytes as they come: who sleeps until all are there is woken again and again, for
        the room that the sender needs."""
        done_bytes = start_bytes
        left: Sequence[bytes | memoryview] = after(views, start_bytes) if self._most_s else ()
        while left and self.look():
            received = self._socket.recvmsg_into(left[:MAX_VECTORS])[0]
            if received == 0:
                raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
            left = after(left, received)
            done_bytes += received
        if left or not self._most_s:
            receive_all(self._socket, views, done_bytes)
