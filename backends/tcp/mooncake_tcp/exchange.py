"""A connection for one thread at a time, which sends its requests and receives the answers itself: nobody has to wake up."""

from __future__ import annotations

import errno
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mooncake_core.errors import AuthenticationFailed, DeadlineExceeded, TransferError, VersionMismatch
from mooncake_core.transfer.contract import Completion, Kind, Operation
from mooncake_core.transfer.lanes import Lane
from mooncake_core.transfer.sockets import name_of, receive_into
from mooncake_tcp.clock import PeerClock
from mooncake_tcp.connecting import LATE, SILENT, Dialer, break_off, connection_failed, path_failed
from mooncake_tcp.frames import (
    RANGE,
    REQUEST,
    RESPONSE,
    Status,
    error_of,
    receive_first,
)
from mooncake_tcp.links import Link, certain
from mooncake_tcp.looking import Looking
from mooncake_tcp.requests import request
from mooncake_tcp.sending import Sender

MOST_UNANSWERED: Final = 256
MOST_UNANSWERED_BYTES: Final = 32 << 10
"""Of headers. Nothing is received while requests are sent, so they and their answers' headers must fit in the sockets'
buffers, or both ends would wait for each other."""

Pair = tuple[Operation, bytes]
"""An operation, and the key of the export it names."""


class _MixedUpError(Exception):
    """An operation was refused, and bytes of the next answer lie in its pieces: the answers that follow are lost."""


class Exchange:
    """Carries operations out in the caller's thread. What breaks it ends it."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        dialer: Dialer,
        note_deadline: Callable[[float], None],
        link: Link | None = None,
        busy_poll_s: float = 0.0,
    ) -> None:
        """`link` where there are others to the peer."""
        self._busy_poll_s = busy_poll_s
        self.address = host, port
        self.link = link
        self._peer = name_of(host, port)
        self._dialer = dialer
        self._lane: Lane | None = None
        self._note_deadline = note_deadline
        self._clock = PeerClock()
        self._header = memoryview(bytearray(RESPONSE.size))
        self._changed = threading.Lock()
        self._socket: socket.socket | None = None
        self._sender: Sender
        self._looking: Looking
        """Both of the socket, once there is one."""
        self._broken: TransferError | None = None
        self._deadline_s = math.inf
        self._writing = False

    @property
    def deadline_s(self) -> float:
        """Of the first operation under way to end; infinity where there is none."""
        return self._deadline_s

    @property
    def is_broken(self) -> bool:
        """Whether it has ended, as far as is known here."""
        return self._broken is not None

    def is_good(self) -> bool:
        """Whether it can be used (again): the peer has not ended it meanwhile."""
        if self._broken:
            return False
        if self._socket is None:
            return True
        return not self._looking.has_some()  # ended, or bytes that nobody asked for

    def carry_out(self, pairs: Sequence[Pair]) -> list[Completion | None]:
        """Returns when all operations have ended; one completion each, in order; None for what is to be asked again."""
        ended: list[Completion] = []
        try:
            sock = self._begin(pairs)
            for together in _together(pairs):
                self._exchange(sock, together, ended)
        except (AuthenticationFailed, VersionMismatch) as error:
            self.end(connection_failed(self._peer, f": {error}", errno.EPROTO))
        except OSError as error:
            self.end(path_failed(self._peer, error))
        except _MixedUpError:
            self.end(connection_failed(self._peer, " refused a transfer among others", errno.EPROTO))
            self._finish()
            return [*ended, *[None] * (len(pairs) - len(ended))]
        except BaseException as error:  # nonsense from the peer, an interrupt: the rest of an answer may be on its way
            self.end(connection_failed(self._peer, f" answered nonsense: {error!r}", errno.EPROTO))
            if not isinstance(error, ValueError):
                self._finish()
                raise
        self._finish()
        if len(ended) == len(pairs):
            return [*ended]
        return [*ended, *self._failures(pairs[len(ended) :])]

    def expire(self, now: float) -> None:
        """Breaks off an operation that is late: only so it is sure that its memory is not touched any more."""
        if self._deadline_s <= now:
            self.end(connection_failed(self._peer, LATE, errno.ETIMEDOUT))
        elif self.link is not None and self._is_lost(self.link):
            self.end(connection_failed(self._peer, SILENT, errno.ETIMEDOUT))

    def end(self, reason: TransferError) -> None:
        """Breaks the connection; what is under way fails. Idempotent, from any thread."""
        with self._changed:
            self._broken = self._broken or reason
            if self._socket is not None:
                break_off(self._socket, drop_unsent=self._writing)
                if self._deadline_s == math.inf:
                    self._close()

    def _begin(self, pairs: Sequence[Pair]) -> socket.socket:
        first = pairs[0][0]
        deadline_s = first.deadline_s if len(pairs) == 1 else min([operation.deadline_s for operation, _ in pairs])
        with self._changed:
            if self._broken:
                raise ConnectionAbortedError(errno.ECONNABORTED, "it was ended")
            self._deadline_s = deadline_s
            self._writing = first.kind is Kind.WRITE or any(operation.kind is Kind.WRITE for operation, _ in pairs)
            sock = self._socket
            is_new = sock is None
            if sock is None:
                sock = self._socket = self._dialer.new_socket(self.address[0])
                self._sender = Sender(sock)
                self._looking = Looking(sock, self._busy_poll_s)
        self._note_deadline(deadline_s)
        if is_new:
            if self.link is None:
                self._lane = self._dialer.connect(sock, self.address, self._clock)
            else:
                self._lane = self.link.connect(sock, self._clock)
        return sock

    def _is_lost(self, link: Link) -> bool:
        with self._changed:
            sock = self._socket if self._deadline_s < math.inf else None
            return sock is not None and link.is_lost(sock)

    def _exchange(self, sock: socket.socket, pairs: Sequence[Pair], ended: list[Completion]) -> None:
        frames: list[bytes | memoryview] = []
        for operation, key in pairs:
            frames += request(operation, key, self._clock)
        self._sender.send(frames)
        self._looking.look()
        for operation, _ in pairs:
            more_bytes = self._receive_header(sock, operation)
            number, operation_id, length, clock_s = RESPONSE.unpack(self._header)
            if operation_id != operation.operation_id:
                raise ValueError(f"an answer to operation {operation_id} where {operation.operation_id} was asked")
            if number != Status.OK:
                ended.append(Completion(operation_id, error_of(Status(number), self._peer), self._lane))
                if more_bytes:
                    raise _MixedUpError
            else:
                if operation.kind is Kind.READ:
                    self._receive_rest(operation, length, more_bytes)
                ended.append(Completion(operation_id, None, self._lane))
        self._clock.hear(clock_s)

    def _receive_header(self, sock: socket.socket, operation: Operation) -> int:
        """Of an answer. How many bytes behind it came with it, in the pieces of a read: those that were read, mostly."""
        if operation.kind is Kind.READ:
            return receive_first(sock, self._header, operation.pieces)
        receive_into(sock, self._header)
        return 0

    def _receive_rest(self, operation: Operation, length: int, received_bytes: int) -> None:
        expected = operation.length
        if length != expected:
            raise ValueError(f"{length} bytes for a read of {expected}")
        if received_bytes < length:
            self._looking.receive_all(operation.pieces, received_bytes)

    def _finish(self) -> None:
        with self._changed:
            self._deadline_s = math.inf
            if self._broken:
                self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _failures(self, pairs: Sequence[Pair]) -> Iterator[Completion]:
        now = time.monotonic()
        late = DeadlineExceeded(f"{self._peer} over tcp did not finish the transfer in time")
        reason = self._broken if self.link is None else certain(self.link, self._broken, [pair[0] for pair in pairs])
        for operation, _ in pairs:
            error = late if operation.deadline_s <= now else reason
            yield Completion(operation.operation_id, error, self._lane or self._dialer.unconnected(self.address[0]))


def _together(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Parts whose requests are sent before the first of their answers is received."""
    part: list[Pair] = []
    num_bytes = 0
    if len(pairs) == 1:
        yield pairs
        return
    for pair in pairs:
        more = REQUEST.size + RANGE.size * len(pair[0].ranges)
        if part and (len(part) == MOST_UNANSWERED or num_bytes + more > MOST_UNANSWERED_BYTES):
            yield part
            part, num_bytes = [], 0
        part.append(pair)
        num_bytes += more
    if part:
        yield part
