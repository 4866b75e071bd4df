"""What connections of the data plane have in common."""

from __future__ import annotations

import errno
import socket


def family_of(host: str) -> socket.AddressFamily:
    """Of a host that is listened on or connected to."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def name_of(host: str, port: int) -> str:
    """Of a peer, for messages."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def receive_into(sock: socket.socket, view: memoryview) -> None:
    """Fills a view. Raises ConnectionResetError when the peer ends before that."""
    while view.nbytes:
        received = sock.recv_into(view, view.nbytes, socket.MSG_WAITALL)
        if received == 0:
            raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
        view = view[received:]
