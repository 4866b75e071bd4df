"""The target's side: queue pairs for initiators. The NIC serves them; nothing runs here while bytes move."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mooncake_core.errors import MooncakeError, PathFailed, ProtocolError
from mooncake_core.transfer import handshake
from mooncake_core.transfer.contract import TransportSettings
from mooncake_core.transfer.listening import Listener
from mooncake_core.transfer.sockets import notice_vanished_host
from mooncake_rdma.conversation import WITHDRAWN, Connect, Connected, Refused, receive, send
from mooncake_rdma.ports import Fabric

if TYPE_CHECKING:
    from mooncake_rdma.verbs import Device, QueuePair

_log = logging.getLogger(__name__)


class Target:
    """One queue pair per data connection, which ends with it."""

    def __init__(self, settings: TransportSettings, devices: Sequence[Device]) -> None:
        """Raises PathFailed: it cannot listen; names address and errno."""
        self._settings = settings
        self._devices = devices
        self._lock = threading.Lock()
        self._connected: set[socket.socket] = set()
        self._listener = Listener(settings.listen_host, settings.listen_port, self._serve, name="rdma")
        self.port = self._listener.port

    def tell_withdrawn(self, export: int) -> None:
        """Initiators need not find out by an error, which costs them the queue pair. Who does not listen is not waited for."""
        with self._lock:
            connected = list(self._connected)
        for connection in connected:
            with contextlib.suppress(OSError):
                connection.send(WITHDRAWN.pack(export), socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Ends the listener, all connections and their queue pairs. Idempotent."""
        self._listener.close()

    def _serve(self, connection: socket.socket) -> None:
        pair: QueuePair | None = None
        try:
            connection.settimeout(handshake.TIMEOUT_S)
            if not handshake.welcome(connection, self._settings.secret):
                return
            pair = self._connect(connection)
            if pair is not None:
                notice_vanished_host(connection)
                connection.settimeout(None)
                self._wait(connection)
        except (OSError, ProtocolError) as error:
            _log.debug("a data connection ended: %s", error)
        finally:
            if pair is not None:
                pair.close()

    def _connect(self, connection: socket.socket) -> QueuePair | None:
        asked = receive(connection)
        if not isinstance(asked, Connect):
            raise ProtocolError(f"expected Connect, found {type(asked).__name__}")
        if asked.incarnation != self._settings.incarnation:
            send(connection, Refused("it was started anew", errno.ESTALE, is_stale=True))
            return None
        try:
            pair = self._pair(asked)
        except MooncakeError as error:
            send(connection, Refused(error.message, error.detail.get("errno", errno.EINVAL)))
            return None
        try:
            send(connection, Connected(pair.handle))
        except BaseException:
            pair.close()
            raise
        return pair

    def _pair(self, asked: Connect) -> QueuePair:
        if not 0 <= asked.place < len(self._devices) or asked.fabric not in list(Fabric):
            raise PathFailed(f"there is no port {asked.place} of {asked.fabric}", errno=errno.ENODEV)
        pair = self._devices[asked.place].queue_pair(Fabric(asked.fabric))
        try:
            pair.connect(asked.handle)
        except BaseException:
            pair.close()
            raise
        return pair

    def _wait(self, connection: socket.socket) -> None:
        """Until the initiator ends, or `close` does."""
        with self._lock:
            self._connected.add(connection)
        try:
            while connection.recv(64):
                pass
        finally:
            with self._lock:
                self._connected.discard(connection)
