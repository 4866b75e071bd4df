"""One plain connection to a server's door (door.py), used by one thread at a time: asks, and waits for the answer."""

from __future__ import annotations

import contextlib
import itertools
import math
import select
import socket
import struct
import time
from typing import Final

from mooncake_core import busy_poll
from mooncake_core.errors import DeadlineExceeded, MooncakeError, PeerUnreachable, ProtocolError, from_wire
from mooncake_core.wire.envelope import (
    Cutter,
    Envelope,
    Head,
    Hello,
    Kind,
    decode_hello,
    encode_part,
    pack,
    whole,
)
from mooncake_core.wire.messages import Message, decode, encode
from mooncake_core.wire.messages.envelope import Failure
from mooncake_core.wire.versions import agree

RECEIVE_BYTES: Final = 64 << 10
_TIMEVAL: Final = struct.Struct("@ll")


class Line:
    """Not connected at first. What goes wrong while something is asked ends it."""

    def __init__(self, server: str, hello: Hello, busy_poll_s: float = 0.0) -> None:
        self._server = server
        """For messages."""
        self._hello = hello
        self._busy_poll_s = busy_poll_s
        self._numbers = itertools.count(1)
        self._socket: socket.socket | None = None
        self._poller = select.poll()
        self._outgoing = memoryview(b"")
        self._sent: list[int] = []
        """How much of it each system call took. Like `_received`, it is filled by the call itself: an interrupt comes between two
        steps of the interpreter, and what happened before it must not be forgotten."""
        self._received: list[bytes] = []
        self._wanted_bytes = 0
        """With fewer the envelope that is received is not whole."""
        self._asked = 0
        self._is_answered = True
        self._what = "Hello"
        self._timeout_s = math.nan
        self._head = b""
        """What says so."""
        self._patience_s = 0.0
        """As the kernel was told."""
        self._broken = False

    @property
    def is_idle(self) -> bool:
        """Whether it can be asked the next question."""
        return self._is_answered and not self._broken

    def connect(self, address: tuple[str, int], deadline: float) -> None:
        """Connects, and exchanges greetings.

        Raises:
            PeerUnreachable: nobody is there, or does not answer in time.
            VersionMismatch, ProtocolError: the two do not understand each other.
        """
        try:
            sock = socket.create_connection(address, max(0.001, deadline - time.monotonic()))
            self._socket = sock
            sock.settimeout(None)  # the kernel keeps the deadlines: it saves a system call before each one
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poller.register(sock, select.POLLIN)
        except OSError as error:
            raise self._lost(error) from error
        self._say(pack(Kind.HELLO, 0, encode_part(self._hello)))
        try:
            envelope = self._wait(deadline)
        except DeadlineExceeded as error:
            raise PeerUnreachable(f"nobody answers at the door of {self._server}") from error
        if envelope.kind is Kind.WELCOME:
            agree(self._hello, decode_hello(envelope.head))
        else:
            self._broken = True
            raise _refusal(envelope)

    def is_good(self) -> bool:
        """Whether the server is still there, as far as is known here, and has said nothing that nobody asked for."""
        if self._socket is None or not self.is_idle:
            return False
        return not self._poller.poll(0)

    def ask(self, message: Message, timeout_s: float) -> None:
        """Notes a question; `answer` sends it and waits."""
        self._is_answered = False
        number = self._asked = next(self._numbers)
        self._what = type(message).__name__
        if timeout_s != self._timeout_s:  # mostly it is that of the question before
            self._timeout_s = timeout_s
            self._head = encode_part(Head(timeout_s=timeout_s))
        self._say(pack(Kind.REQUEST, number, self._head, encode(message)))

    def answer(self, deadline: float) -> Message | MooncakeError:
        """The answer, or the server's error. After an interrupt it can be called again: it goes on, or answers the same.

        Raises:
            PeerUnreachable: the connection broke, or was hung up.
            DeadlineExceeded: no answer before the deadline.
            ProtocolError: the server speaks something else.
        """
        while True:
            envelope = self._wait(deadline)
            if envelope.kind is Kind.LAST and envelope.number == self._asked:
                break
            self._received.clear()
        message = decode(envelope.body)
        self._is_answered = True
        return from_wire(message.code, message.message, message.detail) if isinstance(message, Failure) else message

    def hang_up(self) -> None:
        """Ends it, from another thread: whoever waits gets PeerUnreachable, and closes it."""
        self._broken = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it may have ended already
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Frees the socket. Idempotent."""
        self._broken = True
        if self._socket is not None:
            self._socket.close()

    def _say(self, data: bytes) -> None:
        self._received, self._wanted_bytes = [], 0
        self._sent, self._outgoing = [], memoryview(data)

    def _wait(self, deadline: float) -> Envelope:
        """Sends what is not sent yet, and the next envelope that comes."""
        sock = self._socket
        assert sock is not None  # connected
        try:
            while True:
                if self._received and (envelope := self._cut()) is not None:
                    return envelope
                self._set_patience(sock, deadline - time.monotonic())
                sent_bytes = sum(self._sent)
                if sent_bytes < len(self._outgoing):
                    self._sent.extend(map(sock.send, (self._outgoing[sent_bytes:],)))
                    continue
                if self._busy_poll_s:
                    busy_poll.look(self._poller.poll, self._busy_poll_s)
                self._received.extend(map(sock.recv, (RECEIVE_BYTES,)))
                if not self._received[-1]:
                    raise ConnectionResetError("it was closed")
        except (BlockingIOError, TimeoutError) as error:
            self._broken = True
            raise DeadlineExceeded(
                f"{self._server} did not answer {self._what} within {self._timeout_s:.3g}s"
            ) from error
        except OSError as error:
            raise self._lost(error) from error
        except ProtocolError:
            self._broken = True
            raise

    def _cut(self) -> Envelope | None:
        """What was received last, if it is whole."""
        if len(self._received) == 1 and (envelope := whole(self._received[0])) is not None:  # mostly
            return envelope
        if sum(map(len, self._received)) < self._wanted_bytes:
            return None
        cutter = Cutter()
        envelopes = cutter.feed(b"".join(self._received))
        if not envelopes:
            self._wanted_bytes = cutter.wanted_bytes
            return None
        return envelopes[-1]

    def _set_patience(self, sock: socket.socket, left_s: float) -> None:
        """Of the next system call. Mostly it is that of the call before."""
        if left_s <= 0:
            raise TimeoutError
        if abs(left_s - self._patience_s) > left_s / 20:
            self._patience_s = left_s
            seconds = int(left_s)
            value = _TIMEVAL.pack(seconds, max(1, int((left_s - seconds) * 1e6)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def _lost(self, error: OSError) -> PeerUnreachable:
        self._broken = True
        return PeerUnreachable(f"the connection to {self._server} broke: {error.strerror or error}")


def _refusal(envelope: Envelope) -> MooncakeError:
    """Why there is no welcome."""
    message = decode(envelope.body)
    if isinstance(message, Failure):
        return from_wire(message.code, message.message, message.detail)
    return ProtocolError(f"expected a welcome, got {type(message).__name__}")
