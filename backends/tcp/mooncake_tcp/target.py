"""The target's side: a data server that lets peers read and write exported memory."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from mooncake_core.errors import PathFailed
from mooncake_core.transfer.exports import Exports
from mooncake_core.transfer.listening import Listener
from mooncake_core.transfer.pinned import PinnedBuffers
from mooncake_tcp.plain import Sockets
from mooncake_tcp.serving import Serving

MOST_BROKEN_OFF: Final = 1024
"""Names remembered: what came late by such a connection would be days old."""
ENDING_S: Final = 5.0


class Target:
    """Serves connections on one or several addresses, and breaks off accesses that are late."""

    def __init__(
        self,
        hosts: Sequence[str],
        port: int,
        exports: Exports,
        secret: bytes | None,
        sockets: Sockets,
        pinned: PinnedBuffers,
        busy_poll_s: float = 0.0,
    ) -> None:
        """Raises PathFailed where it cannot listen at one of the hosts."""
        self._named: dict[bytes, Serving] = {}
        self._broken_off: deque[bytes] = deque(maxlen=MOST_BROKEN_OFF)
        self._exports = exports
        self._secret = secret
        self._sockets = sockets
        self._pinned = pinned
        self._busy_poll_s = busy_poll_s
        self._changed = threading.Condition()
        self._servings: set[Serving] = set()
        self._earliest_s = math.inf
        self._closing = False
        self._listeners: list[Listener] = []
        try:
            for host in hosts:
                self._listeners.append(Listener(host, port, self._serve, name="tcp"))
        except PathFailed:
            self._close_listeners()
            raise
        self.addresses = [(host, listener.port) for host, listener in zip(hosts, self._listeners, strict=True)]
        self._timer = threading.Thread(target=self._watch_deadlines, name="tcp-accesses", daemon=True)
        self._timer.start()

    def close(self) -> None:
        """Ends the listener and all connections. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._timer.join()
        self._close_listeners()

    def enter(self, name: bytes, serving: Serving) -> bool:
        with self._changed:
            if name in self._broken_off:
                return False
            self._named[name] = serving
            return True

    def break_off(self, name: bytes) -> bool:
        with self._changed:
            self._broken_off.append(name)
            serving = self._named.get(name)
            if serving is None:
                return True
            serving.shut_down()
            return self._changed.wait_for(lambda: name not in self._named, ENDING_S)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _serve(self, connection: socket.socket) -> None:
        serving = Serving(connection, self._exports, self._note_deadline, self, self._pinned, self._busy_poll_s)
        with self._changed:
            self._servings.add(serving)
        try:
            serving.run(self._secret, self._sockets)
        finally:
            with self._changed:
                self._servings.discard(serving)
                for name in [name for name, named in self._named.items() if named is serving]:
                    del self._named[name]
                self._changed.notify_all()

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
