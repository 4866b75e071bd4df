"""A zmq socket on an asyncio loop, with a callback per message and no task of its own.

zmq's descriptor is edge-triggered: it may stay silent although messages wait, after any call on the socket. So whoever
sends also looks for what can be received.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, cast

import zmq

from mooncake_core.wire.envelope import MAX_MESSAGE_BYTES

HEARTBEAT_MS: Final = 5_000
HEARTBEAT_TIMEOUT_MS: Final = 20_000
HIGH_WATER_MARK: Final = 100_000
LINGER_MS: Final = 200
_MESSAGES_PER_TURN: Final = 100

Frames = list[bytes]


class Channel:
    """Sends at once or not at all; receives by callback. Used on one event loop."""

    def __init__(self, socket: zmq.Socket[bytes], on_frames: Callable[[Frames], None]) -> None:
        self._socket = socket
        self._on_frames = on_frames
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._receive)
        self._scheduled = False
        self._schedule()

    def send(self, frames: Sequence[bytes]) -> None:
        """Queues a message.

        Raises:
            zmq.ZMQError: no peer to send to, or it does not take what is queued for it.
        """
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        finally:
            self._schedule()

    def close(self) -> None:
        """Closes the socket; what is queued is sent within LINGER_MS. Idempotent."""
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            # An event for a monitor that nobody receives from any more would hold up the thread of all zmq sockets for ever.
            self._socket.disable_monitor()
            self._socket.close(linger=LINGER_MS)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._receive_again)

    def _receive_again(self) -> None:
        self._scheduled = False
        self._receive()

    def _receive(self) -> None:
        for _ in range(_MESSAGES_PER_TURN):
            # Asked first: that there is nothing is the usual end, and as an exception it costs more than a message.
            if self._socket.closed or not cast(int, self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            self._on_frames(self._socket.recv_multipart(zmq.NOBLOCK))
        self._schedule()


def limit(socket: zmq.Socket[bytes]) -> None:
    """Bounds what a peer can make this socket hold, and notices peers that vanish without a word."""
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.IPV6, 1)
