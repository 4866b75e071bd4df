"""The initiator's side: connections to a peer, each with a thread that sends what is large and one that receives."""

from __future__ import annotations

import errno
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from mooncake_core.errors import AuthenticationFailed, DeadlineExceeded, TransferError, VersionMismatch
from mooncake_core.transfer.contract import Completion, Kind, Operation
from mooncake_core.transfer.lanes import Lane
from mooncake_core.transfer.sockets import name_of
from mooncake_tcp.clock import PeerClock
from mooncake_tcp.connecting import LATE, SILENT, Dialer, break_off, connection_failed, path_failed
from mooncake_tcp.frames import (
    REQUEST,
    RESPONSE,
    Status,
    error_of,
    receive_all,
    receive_when_there,
)
from mooncake_tcp.links import WATCH_S, Link, certain
from mooncake_tcp.requests import request
from mooncake_tcp.sending import Sender, send_some

INLINE_BYTES: Final = 64 << 10
_log = logging.getLogger(__name__)


class Connection:
    """One connection to a peer, opened by its sending thread. When it breaks, all its operations fail and it is done."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        dialer: Dialer,
        complete: Callable[[Completion], None],
        on_end: Callable[[Connection], None],
        link: Link | None = None,
    ) -> None:
        """`link` where there are others to the peer: then it connects at once."""
        self.link = link
        self._host, self._port = host, port
        self.peer = name_of(host, port)
        self._dialer = dialer
        self._lane: Lane | None = None
        self._complete = complete
        self._on_end = on_end
        self._changed = threading.Condition()
        self._clock = PeerClock()
        self._unsent: list[bytes | memoryview] = []
        """What is left of a request whose beginning is on its way."""
        self._queued: list[tuple[Operation, bytes]] = []
        self._open = False
        """Connected, and nothing is being sent by the thread: callers may send what is small."""
        self._pending: dict[int, Operation] = {}
        self.pending_bytes = 0
        self._busy_since_s = 0.0
        """With what is answered next."""
        self._broken: TransferError | None = None
        self._is_connected = False
        self.is_retired = False
        """Ended only to make room for others."""
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=f"tcp-to-{self.peer}", daemon=True)
        self._thread.start()

    def submit(self, operations: Sequence[tuple[Operation, bytes]]) -> bool:
        """Queues (operation, key) pairs; False when the connection has ended and another must take them."""
        with self._changed:
            if self._broken:
                return False
            if not self._pending:
                self._busy_since_s = time.monotonic()
            for operation, _ in operations:
                self._pending[operation.operation_id] = operation
                self.pending_bytes += operation.length
            if self._open and not self._unsent and not self._queued and _num_bytes(operations) <= INLINE_BYTES:
                self._unsent = self._send_now(self._frames(operations))
            else:
                self._queued += operations
            if self._unsent or self._queued:
                self._changed.notify()
            return True

    def earliest_deadline(self) -> float | None:
        """Of what is under way."""
        with self._changed:
            if self._broken:
                return None
            first_s = min((operation.deadline_s for operation in self._pending.values()), default=None)
            return first_s if first_s is None or self.link is None else min(first_s, time.monotonic() + WATCH_S)

    @property
    def is_open(self) -> bool:
        """Whether it was connected."""
        return self._is_connected

    def expire(self, now: float) -> None:
        """Breaks the connection if an operation is late: only so it is sure that its memory is not touched any more."""
        with self._changed:
            late = [operation for operation in self._pending.values() if operation.deadline_s <= now]
            watched = self._socket if self._pending and not self._broken else None
            is_lost = self.link is not None and watched is not None and self.link.is_lost(watched)
        if late:
            self.end(connection_failed(self.peer, LATE, errno.ETIMEDOUT))
        elif is_lost:
            self.end(connection_failed(self.peer, SILENT, errno.ETIMEDOUT))

    def end(self, reason: TransferError) -> None:
        """Breaks the connection; its threads fail what is under way. Idempotent."""
        with self._changed:
            self._broken = self._broken or reason
            if self._socket:
                writing = any(operation.kind is Kind.WRITE for operation in self._pending.values())
                break_off(self._socket, drop_unsent=writing)
            self._changed.notify()

    @property
    def is_running(self) -> bool:
        """Whether something of it is still to end."""
        return self._thread.is_alive()

    def retire(self) -> bool:
        """Ends it if nothing is under way, to make room for others: that is no failure. Whether it has."""
        with self._changed:
            if self._pending or self._broken:
                return False
            self.is_retired = True
            self.end(connection_failed(self.peer, " was not used for long", errno.ECONNABORTED))
            return True

    def join(self) -> None:
        """Waits until the threads have ended."""
        self._thread.join()

    def _run(self) -> None:
        """Connects once there is something to send, sends until the end, then fails what is left."""
        receiver: threading.Thread | None = None
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._queued or self._broken or self.link)
            sock = self._connect()
            self._is_connected = True
            thread = threading.Thread(target=self._receive, args=(sock,), name=f"tcp-from-{self.peer}", daemon=True)
            thread.start()
            receiver = thread
            sender = Sender(sock)
            while frames := self._next_frames():
                sender.send(frames)
        except (AuthenticationFailed, VersionMismatch) as error:
            self.end(connection_failed(self.peer, f": {error}", errno.EPROTO))
        except OSError as error:
            self.end(path_failed(self.peer, error))
        except Exception as error:  # out of threads, say: whatever it is, nobody may be left waiting
            _log.exception("the connection to %s failed", self.peer)
            self.end(connection_failed(self.peer, f": {error!r}", errno.EIO))
        self.end(
            connection_failed(self.peer, " ended", errno.ECONNABORTED)
        )  # shuts the socket down, if that was not done yet
        if receiver:
            receiver.join()
        if self._socket:
            self._socket.close()
        self._on_end(self)
        self._fail_pending()

    def _connect(self) -> socket.socket:
        sock = self._dialer.new_socket(self._host)
        with self._changed:
            self._socket = sock  # from here on, `end` interrupts
            if self._broken:
                raise ConnectionAbortedError(errno.ECONNABORTED, "ended before it was connected")
        if self.link is None:
            self._lane = self._dialer.connect(sock, (self._host, self._port), self._clock)
        else:
            self._lane = self.link.connect(sock, self._clock)
        self._busy_since_s = time.monotonic()
        return sock

    def _next_frames(self) -> list[bytes | memoryview]:
        """What is queued, all at once; empty at the end."""
        with self._changed:
            self._open = True
            self._changed.wait_for(lambda: self._unsent or self._queued or self._broken)
            self._open = False
            frames = [*self._unsent, *self._frames(self._queued)]
            self._unsent, self._queued = [], []
            return [] if self._broken else frames

    def _frames(self, operations: Sequence[tuple[Operation, bytes]]) -> list[bytes | memoryview]:
        frames: list[bytes | memoryview] = []
        for operation, key in operations:
            frames += request(operation, key, self._clock)
        return frames

    def _send_now(self, frames: list[bytes | memoryview]) -> list[bytes | memoryview]:
        """Sends in the caller's thread, without waiting: a request is on its way before a thread could wake. Returns what
        the thread must send."""
        assert self._socket is not None  # open means connected
        try:
            return send_some(self._socket, frames)
        except OSError:
            return frames  # the thread meets the same error, and says so

    def _receive(self, sock: socket.socket) -> None:
        header = memoryview(bytearray(RESPONSE.size))
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        try:
            while True:
                receive_when_there(sock, poller, header)
                status, operation_id, length, clock_s = RESPONSE.unpack(header)
                self._clock.hear(clock_s)
                self._receive_one(sock, Status(status), operation_id, length)
        except OSError as error:
            self.end(path_failed(self.peer, error))
        except (ValueError, KeyError) as error:
            self.end(connection_failed(self.peer, f" answered nonsense: {error!r}", errno.EPROTO))

    def _receive_one(self, sock: socket.socket, status: Status, operation_id: int, length: int) -> None:
        with self._changed:
            operation = self._pending[operation_id]
        if status is Status.OK and operation.kind is Kind.READ:
            if length != operation.length:
                raise ValueError(f"{length} bytes for a read of {operation.length}")
            receive_all(sock, operation.pieces)
        with self._changed:
            del self._pending[operation_id]
            self.pending_bytes -= operation.length
            now = time.monotonic()
            busy_s, self._busy_since_s = now - self._busy_since_s, now
        if self.link is not None and status is Status.OK:
            self.link.delivered(operation.length, busy_s)
        error = None if status is Status.OK else error_of(status, self.peer)
        self._complete(Completion(operation_id, error, self._lane))

    def _fail_pending(self) -> None:
        now = time.monotonic()
        with self._changed:
            reason: TransferError = self._broken or connection_failed(self.peer, " ended", errno.ECONNABORTED)
            pending, self._pending = self._pending, {}
        if self.link is not None:
            reason = certain(self.link, reason, [*pending.values()]) or reason
        lane = self._lane or self._dialer.unconnected(self._host)
        for operation in pending.values():
            late = operation.deadline_s <= now
            error = DeadlineExceeded(f"{self.peer} over tcp did not finish the transfer in time") if late else reason
            self._complete(Completion(operation.operation_id, error, lane))


def _num_bytes(operations: Sequence[tuple[Operation, bytes]]) -> int:
    """To be sent, but for further ranges."""
    return sum(REQUEST.size + (operation.length if operation.kind is Kind.WRITE else 0) for operation, _ in operations)
