"""What lies where in a segment: `[slot][slot]...[header|data][header|data]...`.

A slot is the directory's word on one object: free, reserved by a writer, committed, or removed. The header beside the data names
the object, so that whoever reads stale space notices. Writers are one-sided: they write slot and header themselves.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from mooncake_core.errors import InvalidRequest

ALIGNMENT: Final = 64
SLOT_BYTES: Final = 64
MAX_KEY_BYTES: Final = 1024
_SLOT: Final = struct.Struct("<8sQQQQQ16x")  # magic, state, allocation id, offset, size, checksum
_HEADER: Final = struct.Struct("<8sQQHH")  # magic, allocation id, size, key length, parent length
_SLOT_MAGIC: Final = b"MNCSLOT1"
_HEADER_MAGIC: Final = b"MNCOBJ_1"


class SlotState(enum.IntEnum):
    """Of a directory slot."""

    FREE = 0
    RESERVED = 1
    COMMITTED = 2
    REMOVED = 3
    """The object is gone, but its space is not free yet."""


WRITTEN_STATES: Final = (SlotState.RESERVED, SlotState.COMMITTED, SlotState.REMOVED)
_WRITTEN: Final = frozenset(map(int, WRITTEN_STATES))


class Slot(Struct, frozen=True, gc=False):
    """A slot's content."""

    state: SlotState
    allocation_id: int
    offset: int
    size_bytes: int
    checksum: int


class Header(Struct, frozen=True, gc=False):
    """What stands before an object's data."""

    allocation_id: int
    size_bytes: int
    key: str
    parent: str


def align(num_bytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def header_bytes(key: str, parent: str) -> int:
    """Room for the header of an object; its data begins aligned.

    Raises:
        InvalidRequest: the key is empty or too long.
    """
    key_bytes, parent_bytes = len(key.encode()), len(parent.encode())
    if not 0 < key_bytes <= MAX_KEY_BYTES or parent_bytes > MAX_KEY_BYTES:
        raise InvalidRequest(f"expected a key of 1 to {MAX_KEY_BYTES} bytes, got {key_bytes}", param="key")
    return align(_HEADER.size + key_bytes + parent_bytes)


def extent_bytes(key: str, parent: str, size_bytes: int) -> int:
    """Space an object takes, header included.

    Raises:
        InvalidRequest: the key is empty or too long, or the size is none.
    """
    if size_bytes < 0:
        raise InvalidRequest(f"expected a size of 0 bytes or more, got {size_bytes}", param="size_bytes")
    return header_bytes(key, parent) + align(size_bytes)


def pack_header(header: Header) -> bytes:
    """The header, padded to header_bytes."""
    key, parent = header.key.encode(), header.parent.encode()
    packed = _HEADER.pack(_HEADER_MAGIC, header.allocation_id, header.size_bytes, len(key), len(parent)) + key + parent
    return packed.ljust(align(len(packed)), b"\0")


def unpack_header(data: memoryview | bytes) -> Header | None:
    """The header at the start of `data`, or None where there is none."""
    if len(data) < _HEADER.size:
        return None
    magic, allocation_id, size_bytes, key_bytes, parent_bytes = _HEADER.unpack_from(data)
    names = bytes(data[_HEADER.size : _HEADER.size + key_bytes + parent_bytes])
    if magic != _HEADER_MAGIC or len(names) != key_bytes + parent_bytes:
        return None
    try:
        return Header(allocation_id, size_bytes, names[:key_bytes].decode(), names[key_bytes:].decode())
    except UnicodeDecodeError:
        return None


def names(data: bytes | bytearray, allocation_id: int, key: str) -> bool:
    """Whether a header is that of an object."""
    magic, found_id, _, key_bytes, _ = _HEADER.unpack_from(data)
    if magic != _HEADER_MAGIC or found_id != allocation_id:
        return False
    return data[_HEADER.size : _HEADER.size + key_bytes] == key.encode()


def read_names(segment: memoryview, offset: int, allocation_id: int, size_bytes: int) -> tuple[str, str, int] | None:
    """Key, parent and length of the header at an offset of a segment; None where it is not that of this object."""
    start = offset + _HEADER.size
    if start > len(segment):
        return None
    magic, found_id, found_bytes, key_bytes, parent_bytes = _HEADER.unpack_from(segment, offset)
    if magic != _HEADER_MAGIC or (found_id, found_bytes) != (allocation_id, size_bytes):
        return None
    names = bytes(segment[start : start + key_bytes + parent_bytes])
    if not 0 < key_bytes <= MAX_KEY_BYTES or parent_bytes > MAX_KEY_BYTES or len(names) != key_bytes + parent_bytes:
        return None
    try:
        return names[:key_bytes].decode(), names[key_bytes:].decode(), align(_HEADER.size + len(names))
    except UnicodeDecodeError:
        return None


def pack_slot(slot: Slot) -> bytes:
    """SLOT_BYTES bytes."""
    return _SLOT.pack(_SLOT_MAGIC, slot.state, slot.allocation_id, slot.offset, slot.size_bytes, slot.checksum)


def unpack_slot(data: memoryview | bytes) -> Slot | None:
    """The slot in `data`, or None for one that was never written, or makes no sense."""
    magic, state, allocation_id, offset, size_bytes, checksum = _SLOT.unpack_from(data)
    if magic != _SLOT_MAGIC or state not in WRITTEN_STATES:
        return None
    return Slot(SlotState(state), allocation_id, offset, size_bytes, checksum)


def is_committed(data: bytes | bytearray, allocation_id: int, start: int = 0) -> bool:
    """Whether the slot that begins at `start` says that an object is there."""
    magic, state, found_id, *_ = _SLOT.unpack_from(data, start)
    return bool(magic == _SLOT_MAGIC and (state, found_id) == (SlotState.COMMITTED, allocation_id))


def used_slots(slots: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(index, state, allocation id, offset, size, checksum) of those in a row of slots that were written."""
    for index, (magic, state, allocation_id, offset, size_bytes, checksum) in enumerate(_SLOT.iter_unpack(slots)):
        if magic == _SLOT_MAGIC and state in _WRITTEN:
            yield index, state, allocation_id, offset, size_bytes, checksum
