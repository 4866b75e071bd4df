"""What connections of the data plane have in common."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

KEEPALIVE_IDLE_S: Final = 30
KEEPALIVE_INTERVAL_S: Final = 5
_NO_LINGER: Final = struct.pack("ii", 1, 0)
UNANSWERED_S: Final = 60
"""The kernel gives a connection up whose bytes or probes are not answered for so long. Deadlines are shorter, mostly."""


def family_of(host: str) -> socket.AddressFamily:
    """Of a host that is listened on or connected to."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def name_of(host: str, port: int) -> str:
    """Of a peer, for messages."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def notice_vanished_host(sock: socket.socket) -> None:
    """A host that vanishes without a word ends the connection in time."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_S * 1000)


def end_by_reset(sock: socket.socket) -> None:
    """When it is closed, what was not sent yet is dropped, and the peer is told by a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


def receive_into(sock: socket.socket, view: memoryview) -> None:
    """Fills a view. Raises ConnectionResetError when the peer ends before that."""
    while view.nbytes:
        received = sock.recv_into(view, view.nbytes, socket.MSG_WAITALL)
        if received == 0:
            raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
        view = view[received:]
