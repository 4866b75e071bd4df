"""How bytes are given to a connection: short ones together, long ones in the sizes that this machine copies fastest, and with few
calls, each of which leaves the interpreter to other threads."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

from mooncake_core.transfer.addresses import address_of
from mooncake_tcp.frames import MAX_VECTORS, after
from mooncake_tcp.pace import Pace

Give = Callable[[Sequence[bytes | memoryview]], int]

CALL_BYTES: Final = 16 << 20
"""At most so much with one call: each leaves the interpreter, and has to get it back."""
PARTS_CALL_BYTES: Final = 4 << 20
"""As much of what goes in parts, which are made in between."""
CACHE_LINE_BYTES: Final = 64
WORTH_A_CALL_BYTES: Final = 16 << 10
"""Shorter payloads lose less by lying out of line than a call takes."""
PART_BYTES: Final = 48 << 10
"""Of a message, where the network takes more than this in one segment, as a host's own does: some machines move longer ones, that
the kernel cuts at 64 KiB less some bytes, more slowly, and others faster. See docs/decisions/0065."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_MESSAGE_WORDS: Final = 8
"""Of a `struct mmsghdr`, eight bytes each: the third is the address of what to send, the fourth how many places that is in."""
_NUM_SENT: Final = 7
"""Which of them the kernel fills in, half as long as the others: the bytes sent."""


class Sender:
    """Sends on one connection, in the way that is found to be the quicker one. One thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._pace = Pace()

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Sends all buffers in order, without copying them together: what is short with one call, what is long with several."""
        sock = self._socket
        lengths = [*map(len, buffers)]
        num_bytes = sum(lengths)
        if len(buffers) <= MAX_VECTORS and max(lengths) < WORTH_A_CALL_BYTES and num_bytes <= CALL_BYTES:
            _send(sock, sock.sendmsg, buffers, num_bytes)  # the most of small ones
        elif not _takes_parts(sock):
            _send_long(sock, buffers, lengths, in_parts=False)
        else:
            started_s = time.monotonic()
            _send_long(sock, buffers, lengths, in_parts=self._pace.in_parts(num_bytes))
            self._pace.took(num_bytes, time.monotonic() - started_s)


def send_some(sock: socket.socket, buffers: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Sends what can be sent without waiting; returns the rest."""
    views = [view for view in (memoryview(buffer) for buffer in buffers) if view.nbytes]
    try:
        sent = sock.sendmsg(views[:MAX_VECTORS], (), socket.MSG_DONTWAIT)
    except BlockingIOError:
        sent = 0
    return after(views, sent)


def _send_long(
    sock: socket.socket, buffers: Sequence[bytes | memoryview], lengths: Sequence[int], *, in_parts: bool
) -> None:
    give: Give = partial(_give_parts, sock) if in_parts else sock.sendmsg
    call_bytes = PARTS_CALL_BYTES if in_parts else CALL_BYTES
    for together, num_bytes in _calls(buffers, lengths, call_bytes):
        _send(sock, give, together, num_bytes)


def _calls(
    buffers: Sequence[bytes | memoryview], lengths: Sequence[int], call_bytes: int
) -> Iterator[tuple[list[bytes | memoryview], int]]:
    """What goes with one call, and its length. A payload begins at a cache line's distance from the beginning of its call, or
    with a call of its own: elsewhere the kernel copies it more slowly, at both ends."""
    together: list[bytes | memoryview] = []
    num_bytes = 0
    for buffer, length in zip(buffers, lengths, strict=True):
        if together and (
            num_bytes + length > call_bytes
            or len(together) == MAX_VECTORS
            or (num_bytes % CACHE_LINE_BYTES and length >= WORTH_A_CALL_BYTES)
        ):
            yield together, num_bytes
            together, num_bytes = [], 0
        if length < call_bytes:
            together.append(buffer)
            num_bytes += length
            continue
        view = memoryview(buffer)
        for start in range(0, length, call_bytes):
            part = view[start : start + call_bytes]
            yield [part], part.nbytes
    if together:
        yield together, num_bytes


def _takes_parts(sock: socket.socket) -> bool:
    """Whether so much goes into one segment. TLS has records of its own."""
    return type(sock) is socket.socket and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > PART_BYTES


def _send(sock: socket.socket, give: Give, buffers: Sequence[bytes | memoryview], num_bytes: int) -> None:
    """By `give`, which says how many bytes it took; and what it left."""
    sent = give(buffers)
    if sent < num_bytes:
        for left in after(buffers, sent):
            sock.sendall(left)


def _give_parts(sock: socket.socket, buffers: Sequence[bytes | memoryview]) -> int:
    """As messages of PART_BYTES, with one call. Bytes sent."""
    vectors: list[int] = []
    firsts = [0]
    room = PART_BYTES
    for buffer in buffers:
        address, left = address_of(buffer), len(buffer)
        while left > room:
            vectors += (address, room)
            firsts.append(len(vectors))
            address += room
            left -= room
            room = PART_BYTES
        vectors += (address, left)
        room -= left
    return _send_messages(sock, vectors, firsts)


def _send_messages(sock: socket.socket, vectors: Sequence[int], firsts: Sequence[int]) -> int:
    """sendmmsg(2): `vectors` are addresses and lengths in turn, `firsts` says where in them each message begins. How many bytes
    were sent: fewer where a signal came."""
    lying = array("Q", vectors)
    begins = lying.buffer_info()[0]
    words: list[int] = []
    for first, end in pairwise([*firsts, len(vectors)]):
        words += (0, 0, begins + 8 * first, (end - first) // 2, 0, 0, 0, 0)
    messages = array("Q", words)
    num_sent = _libc.sendmmsg(sock.fileno(), messages.buffer_info()[0], len(firsts), 0)
    if num_sent < 0:
        number = ctypes.get_errno()
        if number == errno.EINTR:
            return 0
        raise OSError(number, os.strerror(number))
    return sum(
        memoryview(messages).cast("B").cast("I")[2 * _NUM_SENT : 2 * _MESSAGE_WORDS * num_sent : 2 * _MESSAGE_WORDS]
    )
