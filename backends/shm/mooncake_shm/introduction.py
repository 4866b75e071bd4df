"""What is said on the Unix socket between two processes: which memory an initiator wants, and its descriptor.

The socket then stays open and silent; its end is how either side learns that the other has died.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

import msgspec
from msgspec import Struct

from mooncake_core.errors import AuthenticationFailed

TIMEOUT_S: Final = 5.0
LARGEST_BYTES: Final = 4096
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid


class Want(Struct, frozen=True, array_like=True):
    """Initiator to target: hand me the memory of this export."""

    region: int
    slot: int
    generation: int
    write: bool


class Have(Struct, frozen=True, array_like=True):
    """Target to initiator, with two descriptors, the control page and the region, when `found`."""

    found: bool
    length: int


def check_user(connection: socket.socket) -> None:
    """Shared memory trusts the user, nobody else.

    Raises:
        AuthenticationFailed: the other end runs as another user.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    if uid != os.geteuid():
        raise AuthenticationFailed(f"the process at the other end runs as user {uid}, this one as {os.geteuid()}")


def send(connection: socket.socket, message: Want | Have, descriptors: list[int]) -> None:
    """Sends one message with its descriptors."""
    socket.send_fds(connection, [msgspec.msgpack.encode(message)], descriptors)


def receive_have(connection: socket.socket) -> tuple[Have, list[int]]:
    """The answer and its descriptors, which the caller closes."""
    data, descriptors, _, _ = socket.recv_fds(connection, LARGEST_BYTES, 2)
    if not data:
        raise ConnectionResetError("the peer closed the connection")
    return msgspec.msgpack.decode(data, type=Have), list(descriptors)


def receive_want(connection: socket.socket) -> Want | None:
    """The next wish; None at the end."""
    data = connection.recv(LARGEST_BYTES)
    return msgspec.msgpack.decode(data, type=Want) if data else None
