"""The client for threads: the calling thread itself sends and receives, on a plain connection (door.py) that it has for
itself meanwhile. Where the server has no door, or it cannot be reached, calls go over the event loop's client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar

from mooncake_core.address import parse_host_port
from mooncake_core.errors import MooncakeError, PeerUnreachable
from mooncake_core.wire.client import Client, expected
from mooncake_core.wire.line import Line
from mooncake_core.wire.messages import Message

CONNECT_S: Final = 1.0
"""A door that does not open for so long may be behind a firewall."""
SHUT_S: Final = 30.0
"""So long a door that did not open is not tried again."""
DOOR_PAUSES_S: Final = (0.0, 0.05)
"""Between asking a server that cannot be reached where its door is, and asking again."""
MOST_IDLE: Final = 64

M = TypeVar("M")
T = TypeVar("T")


class Loop(Protocol):
    """Runs coroutines for other threads; see loop_thread.py."""

    def run(self, work: Coroutine[Any, Any, T]) -> T: ...

    def run_surely(self, work: Coroutine[Any, Any, T]) -> tuple[T, BaseException | None]: ...


class BlockingClient:
    """Asks the server of a Client. Used by any number of threads; each call has a connection for itself."""

    def __init__(self, client: Client, loop: Loop, busy_poll_s: float = 0.0) -> None:
        self._client = client
        self._loop = loop
        self._busy_poll_s = busy_poll_s
        self._host = parse_host_port(client.address).host
        self._lock = threading.Lock()
        self._idle: list[Line] = []
        self._lent: set[Line] = set()
        self._port: int | None = None
        """The door's; 0 where there is none, None while that is not known."""
        self._shut_until = 0.0
        """time.monotonic() before which the door is not tried."""
        self._closed = False
        self._process = os.getpid()

    def call(self, message: Message, reply_type: type[M], *, timeout_s: float) -> M:
        """As Client.call. An interrupt (KeyboardInterrupt) gives the answer up."""
        deadline = time.monotonic() + timeout_s
        line = self._lend(deadline)
        if line is None:
            left_s = deadline - time.monotonic()
            return self._loop.run(self._client.call(message, reply_type, timeout_s=left_s))
        try:
            line.ask(message, timeout_s)
            reply = line.answer(deadline)
        finally:
            self._take_back(line)
        return expected(self._client.address, reply, reply_type, message)

    def call_surely(self, message: Message, reply_type: type[M], *, timeout_s: float) -> tuple[M, BaseException | None]:
        """As `call`, but an interrupt does not give the answer up: it is returned beside it."""
        deadline = time.monotonic() + timeout_s
        line = self._lend(deadline)
        if line is None:
            left_s = deadline - time.monotonic()
            return self._loop.run_surely(self._client.call(message, reply_type, timeout_s=left_s))
        interrupt: BaseException | None = None
        reply: Message | MooncakeError | None = None
        try:
            line.ask(message, timeout_s)
            while reply is None:
                try:
                    reply = line.answer(deadline)
                except MooncakeError as error:
                    reply = error
                except BaseException as error:
                    interrupt = error
        finally:
            self._take_back(line)
        if interrupt is not None and isinstance(reply, MooncakeError):
            raise interrupt
        return expected(self._client.address, reply, reply_type, message), interrupt

    def is_connected(self) -> bool:
        """Whether a connection is in use, or could be."""
        with self._lock:
            return bool(self._lent) or any(line.is_good() for line in self._idle)

    def close(self) -> None:
        """Ends all connections; calls under way end with PeerUnreachable. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for line in self._lent:
                line.hang_up()
        for line in idle:
            line.close()

    def _lend(self, deadline: float) -> Line | None:
        """A connection; None where the event loop's client is to be used."""
        while True:
            with self._lock:
                self._check()
                line = self._idle.pop() if self._idle else None
                if line is not None:
                    self._lent.add(line)
            if line is None:
                return self._connect(deadline)
            if line.is_good():
                return line
            self._take_back(line, used=False)

    def _check(self) -> None:
        if self._closed:
            raise PeerUnreachable(f"the connection to {self._client.address} was closed")
        if os.getpid() != self._process:
            raise PeerUnreachable(
                f"the connection to {self._client.address} belongs to the process that this one was forked from: connect "
                "again here"
            )

    def _connect(self, deadline: float) -> Line | None:
        """A new connection. A server that started again has another door: it is asked where, once."""
        now = time.monotonic()
        if now < self._shut_until or self._port == 0:
            return None
        known = self._port
        if known is not None and (line := self._open(known, deadline)) is not None:
            return line
        port = self._port = self._ask_door(deadline)
        line = self._open(port, deadline) if port else None
        if line is None and port:
            self._shut_until = time.monotonic() + SHUT_S
        return line

    def _ask_door(self, deadline: float) -> int:
        for pause_s in DOOR_PAUSES_S:
            try:
                return self._loop.run(self._client.door(timeout_s=max(0.0, deadline - time.monotonic())))
            except PeerUnreachable:  # a server that started again: the loop's client may only just be noticing that
                time.sleep(pause_s)
        return self._loop.run(self._client.door(timeout_s=max(0.0, deadline - time.monotonic())))

    def _open(self, port: int, deadline: float) -> Line | None:
        line = Line(self._client.address, self._client.hello, self._busy_poll_s)
        with self._lock:
            self._check()
            self._lent.add(line)
        try:
            line.connect((self._host, port), min(deadline, time.monotonic() + CONNECT_S))
        except PeerUnreachable:
            self._take_back(line)
            return None
        except BaseException:
            self._take_back(line)
            raise
        return line

    def _take_back(self, line: Line, *, used: bool = True) -> None:
        with self._lock:
            self._lent.discard(line)
            if used and line.is_idle and not self._closed and len(self._idle) < MOST_IDLE:
                self._idle.append(line)
                return
        line.close()
