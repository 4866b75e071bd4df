"""How an initiator gets a connection to a peer, and what it says when there is none."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from mooncake_core.errors import PathFailed
from mooncake_core.transfer import handshake
from mooncake_core.transfer.lanes import Lane, Lanes
from mooncake_core.transfer.sockets import end_by_reset, name_of
from mooncake_tcp.clock import PeerClock
from mooncake_tcp.frames import tune
from mooncake_tcp.plain import Sockets

TRANSPORT: Final = "tcp"
CONNECT_TIMEOUT_S: Final = 5.0
LATE: Final = " was set aside: a transfer missed its deadline"
SILENT: Final = " was set aside: nothing is heard from there"


class Dialer:
    """Connects to peers."""

    def __init__(self, secret: bytes | None, lanes: Lanes, sockets: Sockets) -> None:
        self._sockets = sockets
        self._secret = secret
        self._lanes = lanes

    def new_socket(self, host: str) -> socket.socket:
        """To be connected."""
        return self._sockets.outgoing(host)

    def connect(
        self, sock: socket.socket, peer: tuple[str, int], clock: PeerClock, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> Lane:
        """Connects, and does the handshake; what the bytes go by from now on. Another thread may shut the socket down
        meanwhile.

        Raises:
            OSError: there is no connection.
            AuthenticationFailed, VersionMismatch: the peer is not one to talk to.
        """
        sock.settimeout(timeout_s)
        sock.connect(peer)
        tune(sock)
        sock.settimeout(handshake.TIMEOUT_S)
        clock.hear(handshake.introduce(sock, self._secret, name_of(*peer)))
        sock.settimeout(None)
        return self._lanes.get(TRANSPORT, sock.getsockname()[0], peer[0])

    def unconnected(self, host: str) -> Lane:
        """What stands for a way to a host over which there was no connection yet."""
        return self._lanes.get(TRANSPORT, "", host)


def break_off(sock: socket.socket, *, drop_unsent: bool) -> None:
    """Wakes whoever is sending or receiving. With `drop_unsent` no byte of a write lands after the socket was closed."""
    with contextlib.suppress(OSError):  # it may be closed already
        if drop_unsent:
            end_by_reset(sock)
        sock.shutdown(socket.SHUT_RDWR)


def path_failed(peer: str, error: OSError) -> PathFailed:
    """An error of a socket in words that name the peer."""
    reason = error.strerror or str(error) or type(error).__name__
    return connection_failed(peer, f": {reason}", error.errno or 0)


def connection_failed(peer: str, what: str, number: int) -> PathFailed:
    """What became of the connection to a peer, and the errno that comes closest to it."""
    return PathFailed(f"{peer} over {TRANSPORT}{what}", peer=peer, path=TRANSPORT, errno=number)
