"""A server's listener: each connection is served by a thread of its own, which blocks in long calls beside the
interpreter lock."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Final

from mooncake_core.errors import PathFailed
from mooncake_core.transfer.sockets import family_of

BACKLOG: Final = 256
ACCEPT_PAUSE_S: Final = 0.1

_log = logging.getLogger(__name__)


class Listener:
    """Accepts until it is closed."""

    def __init__(self, host: str, port: int, serve: Callable[[socket.socket], None], *, name: str) -> None:
        """`serve` runs in a thread per connection, which is closed when it returns.

        Raises:
            PathFailed: it cannot listen there; names address and errno.
        """
        self._serve = serve
        self._name = name
        self._changed = threading.Condition()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._closing = False
        self._socket = socket.socket(family_of(host), socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise PathFailed(
                f"the data server cannot listen on {host}:{port}: {error.strerror}; choose another data_port",
                errno=error.errno,
            ) from error
        self._socket.listen(BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name=f"{name}-accept", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Ends the listener and all connections, and waits for their threads. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):  # it may be closed already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._socket.close()
        with self._changed:
            connections = dict(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):  # it may be closed already
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections.values():
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if self._closing:
                    return
                self._pause(error)
                continue
            thread = threading.Thread(target=self._run, args=(connection,), name=f"{self._name}-serve", daemon=True)
            with self._changed:
                self._connections[connection] = thread
            try:
                thread.start()
            except RuntimeError as error:
                self._forget(connection)
                self._pause(error)

    def _run(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        connection.close()
        with self._changed:
            del self._connections[connection]

    def _pause(self, error: Exception) -> None:
        """Out of descriptors or threads: who connected waits, or tries again."""
        _log.warning("the data server cannot take a connection just now: %s", error)
        with self._changed:
            self._changed.wait_for(lambda: self._closing, ACCEPT_PAUSE_S)
