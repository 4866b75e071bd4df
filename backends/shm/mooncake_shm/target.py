"""The target's side: hands descriptors of exported memory to peers of the same user. One thread; moves no bytes."""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from mooncake_core.errors import AuthenticationFailed, PathFailed
from mooncake_shm.introduction import Gone, Have, Want, check_user, receive_want, send

BACKLOG: Final = 1024
ACCEPT_PAUSE_S: Final = 0.05

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
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, deque[Want | Gone]] = {}
        """With what is left to be said on each: the answer to a wish, and notices. Changed by the thread alone."""
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="shm-target", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the listener and all connections: peers notice."""
        with self._lock:
            self._closing = True
            os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        os.close(self._wake_fd)

    def tell(self, message: Gone) -> None:
        """To all peers; to who is stopped and has not read what was told before, once he goes on."""
        with self._lock:
            if self._closing:
                return
            for unsaid in self._connections.values():
                unsaid.append(message)
            os.eventfd_write(self._wake_fd, 1)

    def _work(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_fd, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._closing:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                if self._listener in ready:
                    self._accept(selector)
                for connection, unsaid in list(self._connections.items()):
                    if connection in ready or unsaid:
                        self._attend(selector, connection, unsaid)
        for connection in list(self._connections):
            self._close(connection)
        self._listener.close()

    def _attend(self, selector: selectors.BaseSelector, connection: socket.socket, unsaid: deque[Want | Gone]) -> None:
        if self._serve(connection, unsaid):
            selector.modify(connection, selectors.EVENT_WRITE if unsaid else selectors.EVENT_READ)
        else:
            selector.unregister(connection)
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        with self._lock:
            del self._connections[connection]
            connection.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            _log.warning("shm cannot take a connection just now: %s", error)
            time.sleep(ACCEPT_PAUSE_S)  # out of descriptors; who connected waits
            return
        try:
            check_user(connection)
        except AuthenticationFailed as error:
            _log.warning("shm refused a connection: %s", error)
            connection.close()
            return
        connection.setblocking(False)
        with self._lock:
            self._connections[connection] = deque()
        selector.register(connection, selectors.EVENT_READ)

    def _serve(self, connection: socket.socket, unsaid: deque[Want | Gone]) -> bool:
        """Says what is to be said, or else hears a wish and answers it; whether the connection lives on. What finds no room
        stays: a wish that is never answered would be the last one."""
        try:
            if not unsaid:
                want = receive_want(connection)
                if want is None:
                    return False
                unsaid.append(want)
            while unsaid:
                self._say(connection, unsaid[0])
                unsaid.popleft()
        except BlockingIOError:
            return True
        except (OSError, msgspec.MsgspecError) as error:
            _log.debug("a shm connection ended: %s", error)
            return False
        return True

    def _say(self, connection: socket.socket, what: Want | Gone) -> None:
        if isinstance(what, Gone):
            send(connection, what)
            return
        have, descriptors = self._answer(what)
        try:
            send(connection, have, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
