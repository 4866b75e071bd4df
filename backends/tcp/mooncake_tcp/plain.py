"""How the transport gets its sockets: as they are, or with TLS (`tls.py`). What is sent and received over them is the same."""

from __future__ import annotations

import socket
from typing import Protocol

from mooncake_core.transfer.sockets import family_of


class Sockets(Protocol):
    """Of one transport. What it gives out understands the calls of frames.py."""

    speaks_tls: bool

    def outgoing(self, host: str) -> socket.socket:
        """To be connected to a peer. `connect` raises OSError, AuthenticationFailed or VersionMismatch."""

    def incoming(self, connection: socket.socket) -> socket.socket:
        """For a connection that was accepted, and has a timeout; that is shut down and closed by the caller. Raises OSError."""


class PlainSockets:
    """Without TLS."""

    speaks_tls = False

    def outgoing(self, host: str) -> socket.socket:
        return socket.socket(family_of(host), socket.SOCK_STREAM)

    def incoming(self, connection: socket.socket) -> socket.socket:
        return connection
