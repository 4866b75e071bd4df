"""What wraps messages on their way: one frame beside the routing identity, with one envelope or several, one after another.

    [kind, number, length of head, length of body][head][body]

kind: one byte. number: the asker's u64, which replies repeat. head: what the kind needs. body: an encoded message. Each
frame costs a system call and a turn at the interpreter lock; tokens of a whole batch leave in one.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from mooncake_core.errors import ProtocolError

MAX_MESSAGE_BYTES: Final = 64 << 20
BUNDLE_BYTES: Final = 1 << 20
_PREFIX: Final = struct.Struct("<cQII")


class Kind(enum.Enum):
    """What an envelope is."""

    HELLO = b"H"
    WELCOME = b"W"
    REQUEST = b"Q"
    REPLY = b"R"
    """One of several replies; more follow."""
    LAST = b"L"
    """The only or last reply."""
    CANCEL = b"C"


_KINDS: Final = {kind.value: kind for kind in Kind}


class Hello(Struct, frozen=True, kw_only=True):
    """The first thing either side says."""

    name: str
    oldest: int
    newest: int
    door: int = 0
    """Of a server: the port of its door (door.py), 0 where it has none."""
    cluster: str = ""
    """Of a master: the name of its cluster. Other servers, and older masters, do not say."""


class Head(Struct, frozen=True, kw_only=True):
    """Of a request."""

    timeout_s: float


class Envelope(NamedTuple):
    """A parsed envelope."""

    kind: Kind
    number: int
    head: bytes
    body: bytes


def pack(kind: Kind, number: int, head: bytes = b"", body: bytes = b"") -> bytes:
    """An envelope as bytes; several of them may stand one after another in a frame."""
    return _PREFIX.pack(kind._value_, number, len(head), len(body)) + head + body  # `value` is a slow property


def bundles(envelopes: Sequence[bytes]) -> Iterator[bytes]:
    """Frames of several envelopes each, none much longer than BUNDLE_BYTES."""
    waiting: list[bytes] = []
    size = 0
    for envelope in envelopes:
        if waiting and size + len(envelope) > BUNDLE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(envelope)
        size += len(envelope)
    if waiting:
        yield b"".join(waiting)


def unpack(frames: list[bytes]) -> list[Envelope]:
    """The envelopes in a message, in order.

    Raises:
        ProtocolError: whoever sent this speaks something else.
    """
    if len(frames) != 1:
        raise ProtocolError(
            f"expected one frame of envelopes, got {len(frames)} frames: the peer is of another version"
        )
    data, start, found = frames[0], 0, []
    try:
        while start < len(data):
            kind, number, head_bytes, body_bytes = _PREFIX.unpack_from(data, start)
            head = start + _PREFIX.size
            body = head + head_bytes
            start = body + body_bytes
            if start > len(data):
                raise ProtocolError(f"an envelope of {len(data)} bytes was cut off")
            found.append(Envelope(_KINDS[kind], number, data[head:body], data[body:start]))
    except (KeyError, struct.error) as error:
        raise ProtocolError(f"expected envelopes, got {len(data)} bytes of something else: {error}") from error
    return found


class Cutter:
    """Cuts what a byte stream brings into envelopes. Pure."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        """Of what is not whole yet."""
        self._num_bytes = 0
        self.wanted_bytes = _PREFIX.size
        """Of the envelope that is not whole yet, as far as is known: with fewer it is not."""

    def feed(self, data: bytes) -> list[Envelope]:
        """The envelopes that are whole now.

        Raises:
            ProtocolError: whoever sends this speaks something else.
        """
        if not self._parts and (envelope := whole(data)) is not None:  # mostly
            return [envelope]
        if self._parts or len(data) < self.wanted_bytes:
            self._parts.append(data)
            self._num_bytes += len(data)
            if self._num_bytes < self.wanted_bytes:
                return []
            data = b"".join(self._parts)
            self._parts = []
        found, start = [], 0
        while (end := self._end(data, start)) <= len(data):
            found += unpack([data[start:end] if start or end < len(data) else data])
            start = end
        self.wanted_bytes = end - start
        self._parts = [data[start:]] if start < len(data) else []
        self._num_bytes = len(data) - start
        return found

    def _end(self, data: bytes, start: int) -> int:
        """Of the envelope that begins there; at least that of its prefix, where that is cut off."""
        if len(data) - start < _PREFIX.size:
            return start + _PREFIX.size
        kind, _, head_bytes, body_bytes = _PREFIX.unpack_from(data, start)
        if kind not in _KINDS or head_bytes + body_bytes > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"expected an envelope of at most {MAX_MESSAGE_BYTES} bytes, got something else")
        end: int = start + _PREFIX.size + head_bytes + body_bytes
        return end


def whole(data: bytes) -> Envelope | None:
    """The envelope that `data` is; None where it is anything else: a part of one, several, one that is too long, or none."""
    if len(data) < _PREFIX.size:
        return None
    kind, number, head_bytes, body_bytes = _PREFIX.unpack_from(data)
    body = _PREFIX.size + head_bytes
    if kind not in _KINDS or body + body_bytes != len(data) or head_bytes + body_bytes > MAX_MESSAGE_BYTES:
        return None
    return Envelope(_KINDS[kind], number, data[_PREFIX.size : body], data[body:])


_encoder = msgspec.msgpack.Encoder()
_hello = msgspec.msgpack.Decoder(Hello)
_head = msgspec.msgpack.Decoder(Head)


def encode_part(part: Hello | Head) -> bytes:
    """A head as bytes."""
    return _encoder.encode(part)


def decode_hello(data: bytes) -> Hello:
    """Raises ProtocolError where there is no hello in `data`."""
    try:
        return _hello.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"expected a hello: {error}") from error


def decode_head(data: bytes) -> Head:
    """Raises ProtocolError where there is no head in `data`."""
    try:
        return _head.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"expected the head of a request: {error}") from error
