"""A server's second entrance: envelopes on plain TCP, for clients that block.

A message over zmq passes through two threads more at each end; for a caller that only waits, most of a round trip is their
waking up. So the server tells in its welcome, over zmq, on which port it takes the same envelopes as a byte stream. It
does so only where the cluster has no key: there is no encryption here. See docs/decisions/0028.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Final, cast

from mooncake_core.errors import ProtocolError
from mooncake_core.wire.envelope import MAX_MESSAGE_BYTES, Cutter, Envelope

RECEIVE_BYTES: Final = 256 << 10
MAX_UNREAD_BYTES: Final = MAX_MESSAGE_BYTES
"""A visitor who leaves more answers unread is shown out."""

_log = logging.getLogger(__name__)


class Door:
    """Used on one event loop."""

    def __init__(self, hear: Callable[[bytes, Sequence[Envelope]], None], gone: Callable[[bytes], None]) -> None:
        """`hear` gets what a visitor says, `gone` is told when one has left; each has an identity that zmq never gives."""
        self._hear = hear
        self._gone = gone
        self._numbers = itertools.count(1)
        self._visitors: dict[bytes, _Visitor] = {}
        self._server: asyncio.Server | None = None
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))

    async def open(self, host: str) -> int:
        """Listens on a free port; which.

        Raises:
            OSError: it cannot.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._admit, host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def has(self, identity: bytes) -> bool:
        """Whether this is a visitor who is there."""
        return identity in self._visitors

    def send(self, identity: bytes, envelope: bytes) -> bool:
        """Says something to a visitor, at once; False where it is none."""
        visitor = self._visitors.get(identity)
        if visitor is None:
            return False
        visitor.say(envelope)
        return True

    async def close(self) -> None:
        """What was said still leaves. Idempotent."""
        if self._server is not None:
            self._server.close()
        for visitor in list(self._visitors.values()):
            visitor.transport.close()

    def _admit(self) -> _Visitor:
        return _Visitor(b"door-%d" % next(self._numbers), self)


class _Visitor(asyncio.BufferedProtocol):
    """One connection. What it says comes in the buffer of all: a new one of the size that asyncio asks for each time costs
    more than what is mostly in it."""

    transport: asyncio.Transport

    def __init__(self, identity: bytes, door: Door) -> None:
        self._identity = identity
        self._door = door
        self._cutter = Cutter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._door._visitors[self._identity] = self

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._door._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._door._hear(self._identity, self._cutter.feed(bytes(self._door._buffer[:nbytes])))
        except ProtocolError as error:
            _log.warning("shown out at the door: %s", error)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        del self._door._visitors[self._identity]
        self._door._gone(self._identity)

    def say(self, envelope: bytes) -> None:
        self.transport.write(envelope)
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            _log.warning("shown out at the door: a visitor who does not read its answers")
            self.transport.abort()
