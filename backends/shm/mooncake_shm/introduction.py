"""What is said on the Unix socket between two processes: which memory an initiator wants, its descriptor, and that it is
gone. One wish at a time: an answer needs no name.

The socket stays open; its end is how either side learns that the other has died.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from mooncake_core.errors import AuthenticationFailed

LARGEST_BYTES: Final = 4096
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid


class Want(Struct, frozen=True, array_like=True):
    """Initiator to target: hand me the memory of this export."""

    region: int
    slot: int
    generation: int
    write: bool


class Have(Struct, frozen=True, array_like=True, tag=True):
    """Target to initiator, with two descriptors, the control page and the region, when `found`."""

    found: bool
    length: int = 0
    errno: int = 0
    """Why the target could not open what it has."""


class Gone(Struct, frozen=True, array_like=True, tag=True):
    """Target to initiator, unasked: the region was unregistered; nobody needs its map any more."""

    region: int


# Made here: threads that use a type for the first time at once, through msgspec's functions, have ended a process.
_WANT: Final = msgspec.msgpack.Decoder(Want)
_ANSWER: Final = msgspec.msgpack.Decoder(Have | Gone)


def check_user(connection: socket.socket) -> None:
    """Shared memory trusts the user, nobody else.

    Raises:
        AuthenticationFailed: the other end runs as another user.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    if uid != os.geteuid():
        raise AuthenticationFailed(f"the process at the other end runs as user {uid}, this one as {os.geteuid()}")


def send(connection: socket.socket, message: Want | Have | Gone, descriptors: Sequence[int] = ()) -> None:
    """Sends one message with its descriptors."""
    socket.send_fds(connection, [msgspec.msgpack.encode(message)], descriptors)


def receive_news(connection: socket.socket) -> tuple[Have | Gone, list[int]]:
    """An answer, with descriptors that the caller closes, or what comes unasked.

    Raises:
        ConnectionResetError: the peer has ended.
    """
    data, descriptors, _, _ = socket.recv_fds(connection, LARGEST_BYTES, 2)
    if not data:
        raise ConnectionResetError(errno.ECONNRESET, "the peer closed the connection")
    return _ANSWER.decode(data), list(descriptors)


def receive_want(connection: socket.socket) -> Want | None:
    """The next wish; None at the end."""
    data = connection.recv(LARGEST_BYTES)
    return _WANT.decode(data) if data else None
