"""What is asked of a queue pair, and what it says. Plain values: whatever carries them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

INLINE_BYTES: Final = 128
"""Bytes of a write that go with its request."""


class PortHandle(Struct, frozen=True, array_like=True):
    """Of one end of a queue pair, as the other end needs it."""

    queue_pair: int
    packet_sequence: int
    lid: int
    mtu: int
    """As verbs count it: 1 is 256 bytes, 5 is 4096."""
    gid: bytes
    reads: int


class WorkRequest(NamedTuple):
    """A one-sided read or write."""

    number: int
    is_read: bool
    segments: Sequence[tuple[int, int, int]]
    """(address, length, local key)"""
    remote_address: int
    remote_key: int
    is_signalled: bool
    is_inline: bool


class Ended(NamedTuple):
    """What the NIC says of a work request."""

    number: int
    queue_pair: int
    status: str
    """SUCCESS, or as RETRY_EXC_ERR."""
