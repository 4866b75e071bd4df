"""The target's side: hands descriptors of exported memory to peers of the same user. One thread; moves no bytes."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable

import msgspec

from mooncake_core.errors import AuthenticationFailed, PathFailed
from mooncake_shm.introduction import Have, Want, check_user, receive_want, send

BACKLOG = 64

_log = logging.getLogger(__name__)


class Target:
    """Listens on a socket without a place in the file system: nothing of it is left after a crash."""

    def __init__(self, answer: Callable[[Want], tuple[Have, list[int]]]) -> None:
        self._answer = answer
        self.name = f"mooncake-shm-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind("\0" + self.name)
        except OSError as error:
            self._listener.close()
            raise PathFailed(f"shm cannot listen: {error.strerror}", errno=error.errno) from error
        self._listener.listen(BACKLOG)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._work, name="shm-target", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the listener and all connections: peers notice."""
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        os.close(self._wake_fd)

    def _work(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_fd, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._wake_fd in ready:
                    break
                for item in ready:
                    if item is self._listener:
                        self._accept(selector)
                    elif isinstance(item, socket.socket) and not self._serve(item):
                        selector.unregister(item)
                        self._connections.discard(item)
                        item.close()
        for connection in (*self._connections, self._listener):
            connection.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            try:
                check_user(connection)
            except AuthenticationFailed as error:
                _log.warning("shm refused a connection: %s", error)
                connection.close()
                return
            connection.setblocking(False)
            self._connections.add(connection)
            selector.register(connection, selectors.EVENT_READ)

    def _serve(self, connection: socket.socket) -> bool:
        """Answers one message; whether the connection lives on."""
        try:
            want = receive_want(connection)
            if want is None:
                return False
            have, descriptors = self._answer(want)
            try:
                send(connection, have, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        except BlockingIOError:
            return True
        except (OSError, msgspec.MsgspecError) as error:
            _log.debug("a shm connection ended: %s", error)
            return False
        return True
