"""What wraps a message on its way: four frames beside the routing identity.

    [kind][number][head][body]

kind: one byte. number: the asker's u64, which replies repeat. head: what the kind needs. body: an encoded message.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from mooncake_core.errors import ProtocolError

MAX_MESSAGE_BYTES: Final = 64 << 20
_NUMBER: Final = struct.Struct("<Q")


class Kind(enum.Enum):
    """What a set of frames is."""

    HELLO = b"H"
    WELCOME = b"W"
    REQUEST = b"Q"
    REPLY = b"R"
    """One of several replies; more follow."""
    LAST = b"L"
    """The only or last reply."""
    CANCEL = b"C"


class Hello(Struct, frozen=True, kw_only=True):
    """The first thing either side says."""

    name: str
    oldest: int
    newest: int


class Head(Struct, frozen=True, kw_only=True):
    """Of a request."""

    timeout_s: float


class Envelope(NamedTuple):
    """A parsed set of frames."""

    kind: Kind
    number: int
    head: bytes
    body: bytes


def pack(kind: Kind, number: int, head: bytes = b"", body: bytes = b"") -> list[bytes]:
    """The frames of an envelope."""
    return [kind.value, _NUMBER.pack(number), head, body]


def unpack(frames: list[bytes]) -> Envelope:
    """The envelope in these frames.

    Raises:
        ProtocolError: whoever sent this speaks something else.
    """
    try:
        kind, number, head, body = frames
        return Envelope(Kind(kind), _NUMBER.unpack(number)[0], head, body)
    except (ValueError, struct.error) as error:
        raise ProtocolError(f"expected the four frames of an envelope, got {len(frames)} frames: {error}") from error


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
