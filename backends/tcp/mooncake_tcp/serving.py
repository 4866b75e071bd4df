"""One connection of a peer, at the target: a thread that blocks in long socket calls, which run beside the interpreter
lock."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

from mooncake_core.errors import DeadlineExceeded, TransferError
from mooncake_core.transfer import handshake
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.exports import Exports
from mooncake_core.transfer.pinned import PinnedBuffers
from mooncake_core.transfer.slices import total_bytes
from mooncake_core.transfer.sockets import end_by_reset, receive_into
from mooncake_tcp.device_serving import receive_to_device, send_from_device
from mooncake_tcp.frames import (
    BREAK_OFF,
    MOST_RANGES,
    NAME,
    RANGE,
    REQUEST,
    RESPONSE,
    Status,
    discard,
    status_of,
    tune,
)
from mooncake_tcp.looking import Looking
from mooncake_tcp.plain import Sockets
from mooncake_tcp.sending import Sender

SCRATCH_BYTES: Final = 1 << 16

_log = logging.getLogger(__name__)


class Names(Protocol):
    """The connections that initiators have given names."""

    def enter(self, name: bytes, serving: Serving) -> bool:
        """Whether it may serve: not when it was broken off before it had a name here."""

    def break_off(self, name: bytes) -> bool:
        """Whether it has ended, or will never begin."""


class Serving:
    """Answers the requests of one connection."""

    def __init__(
        self,
        connection: socket.socket,
        exports: Exports,
        note_deadline: Callable[[float], None],
        names: Names,
        pinned: PinnedBuffers,
        busy_poll_s: float = 0.0,
    ) -> None:
        self._pinned = pinned
        self._busy_poll_s = busy_poll_s
        self._names = names
        self._accepted = self._connection = connection
        self._sender: Sender
        self._looking: Looking
        """Both of the connection, once that speaks TLS or not."""
        self._exports = exports
        self._note_deadline = note_deadline
        self._deadline_s = math.inf
        """Of the access under way."""
        self._is_receiving = False
        """The payload of a write."""

    @property
    def deadline_s(self) -> float:
        """When the access under way must have ended; infinity where there is none."""
        return self._deadline_s

    def run(self, secret: bytes | None, sockets: Sockets) -> None:
        """Serves until the peer ends the connection, or `shut_down` does."""
        try:
            tune(self._accepted)
            self._accepted.settimeout(handshake.TIMEOUT_S)
            self._connection = sockets.incoming(self._accepted)
            self._sender = Sender(self._connection)
            self._looking = Looking(self._connection, self._busy_poll_s)
            if handshake.welcome(self._connection, secret):
                self._connection.settimeout(None)
                self._serve()
        except (OSError, ValueError) as error:
            _log.debug("a data connection ended: %s", error)
        finally:
            # A sender that waits for room is not told of an ordinary end: whoever was shut down makes none any more.
            if self._is_receiving:
                end_by_reset(self._accepted)
            self._connection.close()

    def shut_down(self) -> None:
        """Breaks off, from another thread. What the kernel still receives is refused by a reset."""
        with contextlib.suppress(OSError):  # it may be closed already
            self._accepted.shutdown(socket.SHUT_RDWR)

    def expire(self, now: float) -> None:
        """Breaks off if the access under way is late: its memory may be somebody else's soon."""
        if self._deadline_s <= now:
            self._deadline_s = math.inf
            self.shut_down()

    def _serve(self) -> None:
        scratch = memoryview(bytearray(SCRATCH_BYTES))
        header = memoryview(bytearray(REQUEST.size))
        while True:
            self._looking.look()
            receive_into(self._connection, header)
            kind, more, operation_id, key, deadline_s, offset, length = REQUEST.unpack(header)
            if kind >= NAME:
                self._serve_link(kind, key)
                continue
            ranges = [Range(offset, length)]
            if more:
                ranges += _further(self._connection, more)
            try:
                self._serve_one(kind, operation_id, key, ranges, deadline_s)
            except (TransferError, DeadlineExceeded) as error:
                if kind == Kind.WRITE:
                    self._is_receiving = True
                    discard(self._connection, sum(part.length for part in ranges), scratch)
                    self._is_receiving = False
                self._connection.sendall(_response(status_of(error), operation_id))

    def _serve_link(self, kind: int, name: bytes) -> None:
        """What is about connections, not about memory."""
        if kind == NAME:
            if not self._names.enter(name, self):
                raise ConnectionAbortedError("a connection that was broken off already")
        elif kind == BREAK_OFF:
            done = self._names.break_off(name)
            self._connection.sendall(_response(Status.OK if done else Status.FAILED, 0))
        else:
            raise ConnectionAbortedError(f"a request of kind {kind}")

    def _serve_one(self, kind: int, operation_id: int, key: bytes, ranges: list[Range], deadline_s: float) -> None:
        if deadline_s <= time.monotonic():
            raise DeadlineExceeded("the request arrived after its deadline")
        reads = kind == Kind.READ
        access = self._exports.enter(key, ranges, write=not reads, interrupt=self.shut_down)
        self._deadline_s = deadline_s
        self._note_deadline(deadline_s)
        device = access.export.device
        status = Status.OK
        try:
            if reads:
                response = _response(Status.OK, operation_id, total_bytes(access.memories))
                if device is None:
                    self._sender.send([response, *access.memories])
                else:
                    send_from_device(self._sender, response, access.memories, device, self._pinned)
                return
            self._is_receiving = True
            if device is None:
                self._looking.receive_all(access.memories)
            elif not receive_to_device(self._connection, access.memories, device, self._pinned):
                status = Status.FAILED
            self._is_receiving = False
        finally:
            self._deadline_s = math.inf
            self._exports.leave(access)
        self._connection.sendall(_response(status, operation_id))


def _response(status: Status, operation_id: int, length: int = 0) -> bytes:
    return RESPONSE.pack(status, operation_id, length, time.monotonic())


def _further(connection: socket.socket, count: int) -> list[Range]:
    if count > MOST_RANGES:
        raise ConnectionAbortedError(f"a request with {count} ranges; at most {MOST_RANGES} are taken")
    data = bytearray(count * RANGE.size)
    receive_into(connection, memoryview(data))
    return [Range(offset, length) for offset, length in RANGE.iter_unpack(data)]
