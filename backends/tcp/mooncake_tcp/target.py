"""The target's side: a data server that lets peers read and write exported memory.

A thread per connection blocks in long socket calls, which run beside the interpreter lock.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import Final

from mooncake_core.errors import PathFailed, TransferError
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.exports import Exports
from mooncake_core.transfer.slices import total_bytes
from mooncake_tcp import handshake
from mooncake_tcp.frames import (
    MOST_RANGES,
    RANGE,
    REQUEST,
    RESPONSE,
    Status,
    discard,
    receive_all,
    receive_into,
    send_all,
    status_of,
    tune,
)

SCRATCH_BYTES: Final = 1 << 16
BACKLOG: Final = 256

_log = logging.getLogger(__name__)


class Target:
    """Listens, and serves each connection in a thread."""

    def __init__(self, host: str, port: int, exports: Exports, secret: bytes | None) -> None:
        self._exports = exports
        self._secret = secret
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
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
        self._acceptor.start()

    def close(self) -> None:
        """Ends the listener and all connections. Idempotent."""
        _shut_down(self._listener)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            threads = list(self._connections.values())
            for connection in self._connections:
                _shut_down(connection)
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # the listener was shut down
            with self._lock:
                thread = threading.Thread(target=self._serve, args=(connection,), name="tcp-serve", daemon=True)
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            tune(connection)
            connection.settimeout(handshake.TIMEOUT_S)
            if handshake.welcome(connection, self._secret):
                connection.settimeout(None)
                self._serve_requests(connection)
        except OSError as error:
            _log.debug("a data connection ended: %s", error)
        finally:
            with self._lock:
                del self._connections[connection]
            connection.close()

    def _serve_requests(self, connection: socket.socket) -> None:
        scratch = memoryview(bytearray(SCRATCH_BYTES))
        header = memoryview(bytearray(REQUEST.size))
        while True:
            receive_into(connection, header)
            kind, more, operation_id, key, offset, length = REQUEST.unpack(header)
            ranges = [Range(offset, length), *(_further(connection, more) if more else ())]
            try:
                self._serve_one(connection, Kind(kind), operation_id, key, ranges)
            except TransferError as error:
                if kind == Kind.WRITE:
                    discard(connection, sum(part.length for part in ranges), scratch)
                connection.sendall(RESPONSE.pack(status_of(error), operation_id, 0))

    def _serve_one(
        self, connection: socket.socket, kind: Kind, operation_id: int, key: bytes, ranges: list[Range]
    ) -> None:
        access = self._exports.enter(key, ranges, write=kind is Kind.WRITE, interrupt=lambda: _shut_down(connection))
        try:
            if kind is Kind.READ:
                length = total_bytes(access.memories)
                send_all(connection, [RESPONSE.pack(Status.OK, operation_id, length), *access.memories])
                return
            receive_all(connection, access.memories)
        finally:
            self._exports.leave(access)
        connection.sendall(RESPONSE.pack(Status.OK, operation_id, 0))


def _further(connection: socket.socket, count: int) -> list[Range]:
    if count > MOST_RANGES:
        raise ConnectionAbortedError(f"a request with {count} ranges; at most {MOST_RANGES} are taken")
    data = bytearray(count * RANGE.size)
    receive_into(connection, memoryview(data))
    return [Range(offset, length) for offset, length in RANGE.iter_unpack(data)]


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may be closed already
        sock.shutdown(socket.SHUT_RDWR)
