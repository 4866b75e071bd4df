"""The target's side: a data server that lets peers read and write exported memory."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
import time
from typing import Final

from mooncake_core.errors import PathFailed
from mooncake_core.transfer.exports import Exports
from mooncake_tcp.frames import family_of
from mooncake_tcp.serving import Serving

BACKLOG: Final = 256
ACCEPT_PAUSE_S: Final = 0.1

_log = logging.getLogger(__name__)


class Target:
    """Listens, and serves each connection in a thread. A further one breaks off accesses that are late."""

    def __init__(self, host: str, port: int, exports: Exports, secret: bytes | None) -> None:
        self._exports = exports
        self._secret = secret
        self._changed = threading.Condition()
        self._servings: dict[Serving, threading.Thread] = {}
        self._earliest_s = math.inf
        self._closing = False
        self._listener = socket.socket(family_of(host), socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind((host, port))
        except OSError as error:
            self._listener.close()
            raise PathFailed(
                f"the data server cannot listen on {host}:{port}: {error.strerror}; choose another data_port",
                errno=error.errno,
            ) from error
        self._listener.listen(BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="tcp-accept", daemon=True)
        self._timer = threading.Thread(target=self._watch_deadlines, name="tcp-accesses", daemon=True)
        self._acceptor.start()
        self._timer.start()

    def close(self) -> None:
        """Ends the listener and all connections. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):  # it may be closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._timer.join()
        self._listener.close()
        with self._changed:
            threads = list(self._servings.values())
            for serving in self._servings:
                serving.shut_down()
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._closing:
                    return
                self._pause(error)
                continue
            serving = Serving(connection, self._exports, self._note_deadline)
            with self._changed:
                thread = threading.Thread(target=self._serve, args=(serving,), name="tcp-serve", daemon=True)
                self._servings[serving] = thread
            try:
                thread.start()
            except RuntimeError as error:
                self._forget(serving)
                connection.close()
                self._pause(error)

    def _serve(self, serving: Serving) -> None:
        try:
            serving.run(self._secret)
        finally:
            self._forget(serving)

    def _forget(self, serving: Serving) -> None:
        with self._changed:
            del self._servings[serving]

    def _pause(self, error: Exception) -> None:
        """Out of descriptors or threads: who connected waits, or tries again."""
        _log.warning("the data server cannot take a connection just now: %s", error)
        with self._changed:
            self._changed.wait_for(lambda: self._closing, ACCEPT_PAUSE_S)

    def _note_deadline(self, deadline_s: float) -> None:
        # Looked at without the lock, once per access: who sets a new earliest looks at all accesses after that.
        if deadline_s < self._earliest_s:
            with self._changed:
                self._earliest_s = min(self._earliest_s, deadline_s)
                self._changed.notify_all()

    def _watch_deadlines(self) -> None:
        """Breaks off late accesses. Wakes when the earliest deadline noted has come, mostly to find all done in time."""
        with self._changed:
            while not self._closing:
                patience_s = self._earliest_s - time.monotonic()
                if patience_s > 0:
                    self._changed.wait(min(patience_s, threading.TIMEOUT_MAX))
                    continue
                self._earliest_s = math.inf
                for serving in self._servings:
                    serving.expire(time.monotonic())
                    self._earliest_s = min(self._earliest_s, serving.deadline_s)
