"""The bytes on a data connection.

After the handshake (mooncake_core.transfer.handshake) the initiator sends requests: a REQUEST header with the first range,
a RANGE for each further one, and, for a write, the payload. The target answers each in order with a RESPONSE header and, for
a read that succeeded, the payload.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import select
import socket
import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from mooncake_core.errors import DeadlineExceeded, MooncakeError, OutOfRange, PathFailed, StaleSegment, TransferError
from mooncake_core.transfer.sockets import notice_vanished_host, receive_into

REQUEST: Final = struct.Struct("<B3xIQ16sdQQ8x")
"""Kind, further ranges, operation id, key, deadline on the target's clock, offset and length of the first range. As long as
a cache line, like RESPONSE: the kernel copies what follows it faster."""
NAME: Final = 16
"""A request without an answer: how the initiator calls this connection, where the export's key stands otherwise."""
BREAK_OFF: Final = 17
"""Asks that the connection of that name be ended, and answers when nothing that came by it touches memory any more."""
RANGE: Final = struct.Struct("<QQ")  # offset, length
MOST_RANGES: Final = 1 << 20
RESPONSE: Final = struct.Struct("<B7xQQd32x")  # status, operation id, payload length, the target's clock
MAX_VECTORS: Final = 512

SOCKET_BUFFER_BYTES: Final = 224 << 10


class Status(enum.IntEnum):
    """How the target answers."""

    OK = 0
    STALE = 1
    OUT_OF_RANGE = 2
    FAILED = 3
    LATE = 4


def status_of(error: MooncakeError) -> Status:
    """What to answer for an error at the target."""
    if isinstance(error, DeadlineExceeded):
        return Status.LATE
    if isinstance(error, StaleSegment):
        return Status.STALE
    return Status.OUT_OF_RANGE if isinstance(error, OutOfRange) else Status.FAILED


def error_of(status: Status, peer: str) -> TransferError:
    """What an answer means to the initiator."""
    if status is Status.LATE:
        # It is not, or the connection would have ended with it; the answer has put the clock right for another try.
        return PathFailed(f"{peer} over tcp took the transfer for late", peer=peer, path="tcp", errno=errno.ETIME)
    if status is Status.STALE:
        return StaleSegment(f"{peer} has withdrawn the segment, or was started anew")
    if status is Status.OUT_OF_RANGE:
        return OutOfRange(f"{peer} does not export these bytes for this use")
    return TransferError(f"{peer} failed to serve the transfer")


def tune(sock: socket.socket) -> None:
    """Low latency for small messages. A host that vanishes without a word ends the connection in time. Within a host, buffers
    small enough that what one end copies in the other copies out of its cache; between hosts the kernel fits them to the
    network."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    notice_vanished_host(sock)
    if _stays_on_host(sock):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


def _stays_on_host(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except OSError:  # it has ended already: whoever uses it next finds out why
        return False


def after(buffers: Sequence[bytes | memoryview], num_bytes: int) -> list[bytes | memoryview]:
    """What is left of buffers whose first bytes are done."""
    ends = [*accumulate(map(len, buffers))]
    done = bisect_right(ends, num_bytes)
    left = [*buffers[done:]]
    if left:
        begun = num_bytes - (ends[done - 1] if done else 0)
        if begun:
            left[0] = memoryview(left[0])[begun:]
    return left


def receive_first(sock: socket.socket, header: memoryview, views: Sequence[memoryview]) -> int:
    """Fills a header, and as much of the views after it as there is already. How many bytes these were; raises as
    receive_into."""
    received = sock.recvmsg_into([header, *views[: MAX_VECTORS - 1]])[0]
    if received == 0:
        raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
    if received < header.nbytes:
        receive_into(sock, header[received:])
        return 0
    return received - header.nbytes


def receive_all(sock: socket.socket, views: Sequence[memoryview], start_bytes: int = 0) -> None:
    """Fills views in order, many with one call, from `start_bytes` of them all on. Raises as receive_into."""
    if len(views) == 1:
        receive_into(sock, views[0][start_bytes:] if start_bytes else views[0])
        return
    left: Sequence[bytes | memoryview] = views
    received = start_bytes
    num_bytes = sum(map(len, views))
    while received < num_bytes:
        left = after(left, received)
        num_bytes -= received
        received = sock.recvmsg_into(left[:MAX_VECTORS], 0, socket.MSG_WAITALL)[0]
        if received == 0:
            raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")


def receive_when_there(sock: socket.socket, poller: select.poll, view: memoryview) -> None:
    """As receive_into, where another thread may be sending on the socket: who waits in a receive is woken by the kernel for
    each bit of room that the sender gets, who polls is not. `poller` is registered for what can be read."""
    received = 0
    with contextlib.suppress(BlockingIOError):
        received = sock.recv_into(view, view.nbytes, socket.MSG_DONTWAIT)
        if received == 0:
            raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
    if received < view.nbytes:
        poller.poll()
        receive_into(sock, view[received:])


def discard(sock: socket.socket, num_bytes: int, scratch: memoryview) -> None:
    """Reads and drops a payload that must not land."""
    while num_bytes:
        part = min(num_bytes, scratch.nbytes)
        receive_into(sock, scratch[:part])
        num_bytes -= part
