"""How bytes are given to a connection: short ones together, long ones in sizes that the kernel copies fast, and with few calls,
each of which leaves the interpreter to other threads."""

from __future__ import annotations

import ctypes
import os
import socket
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from mooncake_core.transfer.addresses import address_of
from mooncake_tcp.frames import MAX_VECTORS, after

CALL_BYTES: Final = 1 << 20
CACHE_LINE_BYTES: Final = 64
WORTH_A_CALL_BYTES: Final = 16 << 10
"""Shorter payloads lose less by lying out of line than a call takes."""
PART_BYTES: Final = 32 << 10
"""Where the network takes more than this in one segment (a host's own takes 64 KiB less some bytes) the kernel cuts what is
longer at that odd length, and copies what follows more slowly. So it gets messages of this size there: docs/decisions/0065."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_MESSAGE_WORDS: Final = 8
"""Of a `struct mmsghdr`, eight bytes each."""
_VECTORS: Final = 2
"""Which of them is the address of what to send,"""
_NUM_VECTORS: Final = 3
"""its length,"""
_NUM_SENT: Final = 7
"""and, filled in by the kernel and half as long, the bytes sent."""


def send_all(sock: socket.socket, buffers: Sequence[bytes | memoryview]) -> None:
    """Sends all buffers in order, without copying them together: what is short with one call, what is long with several,
    because the other end receives while this one is between calls."""
    lengths = [*map(len, buffers)]
    num_bytes = sum(lengths)
    if len(buffers) <= MAX_VECTORS and max(lengths) < WORTH_A_CALL_BYTES and num_bytes <= CALL_BYTES:
        _send_together(sock, buffers, num_bytes)  # the most of small ones
        return
    send = _send_parts if _takes_parts(sock) else _send_together
    for together, num_bytes in _calls(buffers, lengths):
        send(sock, together, num_bytes)


def send_some(sock: socket.socket, buffers: Sequence[bytes | memoryview]) -> list[memoryview]:
    """Sends what can be sent without waiting; returns the rest."""
    views = [view for view in (memoryview(buffer) for buffer in buffers) if view.nbytes]
    try:
        sent = sock.sendmsg(views[:MAX_VECTORS], (), socket.MSG_DONTWAIT)
    except BlockingIOError:
        sent = 0
    start = 0
    while start < len(views) and sent >= views[start].nbytes:
        sent -= views[start].nbytes
        start += 1
    left = views[start:]
    if sent:
        left[0] = left[0][sent:]
    return left


def _calls(
    buffers: Sequence[bytes | memoryview], lengths: Sequence[int]
) -> Iterator[tuple[list[bytes | memoryview], int]]:
    """What goes with one call, and its length. A payload begins at a cache line's distance from the beginning of its call, or
    with a call of its own: elsewhere the kernel copies it more slowly, at both ends."""
    together: list[bytes | memoryview] = []
    num_bytes = 0
    for buffer, length in zip(buffers, lengths, strict=True):
        if together and (
            num_bytes + length > CALL_BYTES
            or len(together) == MAX_VECTORS
            or (num_bytes % CACHE_LINE_BYTES and length >= WORTH_A_CALL_BYTES)
        ):
            yield together, num_bytes
            together, num_bytes = [], 0
        if length < CALL_BYTES:
            together.append(buffer)
            num_bytes += length
            continue
        view = memoryview(buffer)
        for start in range(0, length, CALL_BYTES):
            part = view[start : start + CALL_BYTES]
            yield [part], part.nbytes
    if together:
        yield together, num_bytes


def _takes_parts(sock: socket.socket) -> bool:
    """Whether so much goes into one segment. TLS has records of its own."""
    return type(sock) is socket.socket and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > PART_BYTES


def _send_together(sock: socket.socket, buffers: Sequence[bytes | memoryview], num_bytes: int) -> None:
    sent = sock.sendmsg(buffers)
    if sent < num_bytes:
        for left in after(buffers, sent):
            sock.sendall(left)


def _send_parts(sock: socket.socket, buffers: Sequence[bytes | memoryview], num_bytes: int) -> None:
    """As messages of PART_BYTES, with one call."""
    vectors = array("Q")
    firsts = [0]
    room = PART_BYTES
    for buffer in buffers:
        address, left = address_of(buffer), len(buffer)
        while left:
            if not room:
                firsts.append(len(vectors))
                room = PART_BYTES
            now = min(left, room)
            vectors.append(address)
            vectors.append(now)
            address, left, room = address + now, left - now, room - now
    sent = _send_messages(sock, vectors, firsts)
    if sent < num_bytes:
        for rest in after(buffers, sent):
            sock.sendall(rest)


def _send_messages(sock: socket.socket, vectors: array[int], firsts: Sequence[int]) -> int:
    """sendmmsg(2): `vectors` are addresses and lengths in turn, `firsts` says where in them each message begins. Bytes sent."""
    begins = vectors.buffer_info()[0]
    messages = array("Q", bytes(8 * _MESSAGE_WORDS * len(firsts)))
    for number, (first, end) in enumerate(zip(firsts, [*firsts[1:], len(vectors)], strict=True)):
        messages[_MESSAGE_WORDS * number + _VECTORS] = begins + 8 * first
        messages[_MESSAGE_WORDS * number + _NUM_VECTORS] = (end - first) // 2
    num_sent = _libc.sendmmsg(sock.fileno(), messages.buffer_info()[0], len(firsts), 0)
    if num_sent < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    halves = memoryview(messages).cast("B").cast("I")
    return sum(halves[2 * (_MESSAGE_WORDS * number + _NUM_SENT)] for number in range(num_sent))
