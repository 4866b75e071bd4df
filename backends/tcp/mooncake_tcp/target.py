"""The target's side: a data server that lets peers read and write exported memory."""

from __future__ import annotations

import math
import socket
import threading
import time

from mooncake_core.transfer.exports import Exports
from mooncake_core.transfer.listening import Listener
from mooncake_tcp.serving import Serving


class Target:
    """Serves connections, and breaks off accesses that are late."""

    def __init__(self, host: str, port: int, exports: Exports, secret: bytes | None) -> None:
        self._exports = exports
        self._secret = secret
        self._changed = threading.Condition()
        self._servings: set[Serving] = set()
        self._earliest_s = math.inf
        self._closing = False
        self._listener = Listener(host, port, self._serve, name="tcp")
        self.port = self._listener.port
        self._timer = threading.Thread(target=self._watch_deadlines, name="tcp-accesses", daemon=True)
        self._timer.start()

    def close(self) -> None:
        """Ends the listener and all connections. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._timer.join()
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        serving = Serving(connection, self._exports, self._note_deadline)
        with self._changed:
            self._servings.add(serving)
        try:
            serving.run(self._secret)
        finally:
            with self._changed:
                self._servings.discard(serving)

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
