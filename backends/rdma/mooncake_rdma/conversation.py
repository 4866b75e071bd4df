"""What is said on a data connection, after the handshake: the ends tell each other their queue pairs; then it stays open, so that
each notices at once when the other is gone, and the target says which exports were withdrawn."""

from __future__ import annotations

import socket
import struct
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from mooncake_core.errors import ProtocolError
from mooncake_core.transfer.sockets import receive_into
from mooncake_rdma.requests import PortHandle

LONGEST_BYTES: Final = 1 << 16
WITHDRAWN: Final = struct.Struct("<Q")
"""The number of an export."""
_LENGTH: Final = struct.Struct("<I")


class Connect(Struct, frozen=True, tag=True):
    """Initiator → target: a queue pair that wants one of a port of yours."""

    incarnation: int
    """Of the target that is meant."""
    place: int
    """Of the port, in the path's list."""
    fabric: str
    handle: PortHandle


class Connected(Struct, frozen=True, tag=True):
    """Target → initiator: it is there."""

    handle: PortHandle


class Refused(Struct, frozen=True, tag=True):
    """Target → initiator: there is none."""

    reason: str
    errno: int
    is_stale: bool = False
    """Another process listens there by now."""


Said: TypeAlias = Connect | Connected | Refused
_decoder: Final[msgspec.msgpack.Decoder[Said]] = msgspec.msgpack.Decoder(Said)


def send(sock: socket.socket, said: Said) -> None:
    """Raises OSError: the connection has ended."""
    data = msgspec.msgpack.encode(said)
    sock.sendall(_LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket) -> Said:
    """Raises OSError: the connection has ended. ProtocolError: that cannot be understood."""
    header = bytearray(_LENGTH.size)
    receive_into(sock, memoryview(header))
    (length,) = _LENGTH.unpack(header)
    if length > LONGEST_BYTES:
        raise ProtocolError(f"a message of {length} bytes where at most {LONGEST_BYTES} were expected")
    data = bytearray(length)
    receive_into(sock, memoryview(data))
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"a message that is none of ours: {error}") from error
