"""What endpoints of the Transfer Engine say to each other: which memory is registered, and notifications."""

from __future__ import annotations

from msgspec import Struct

from mooncake_core.wire.messages.memory import SegmentDescriptor


class OpenSegment(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Which memory may be read and written at your place?"""


class RegisteredMemory(Struct, frozen=True, kw_only=True, gc=False):
    """A range of memory, and how it is reached."""

    address: int
    segment: SegmentDescriptor


class SegmentOpened(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """All that is registered now, in the order it was."""

    incarnation: int
    """Random per process start: addresses that were learned under another one mean nothing any more."""
    memories: list[RegisteredMemory]


class Notify(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Something for the application at the other end, told after the bytes it is about have arrived. Answered with Done."""

    name: str
    message: str
