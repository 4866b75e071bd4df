"""How an object is named and what stands before its data.

`v1/DD/DIGEST.NUMBER.ALLOCATION`: two digits of the key's digest, the digest, a number that grows with each write (the
oldest has the smallest), and the allocation id, all in hex.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

import xxhash

from mooncake_core.store.tiers.contract import TierObject
from mooncake_core.store.tiers.verified import DIGEST_BYTES, key_digest

FORMAT: Final = 1
"""Raised by every change of names or header. A version reads its own and the one before it."""
FOLDER: Final = f"v{FORMAT}"
_HEADER: Final = struct.Struct(
    "<8sQQQQHH"
)  # magic, sum of the rest, allocation id, size, checksum, key and parent length
_MAGIC: Final = b"MNCTIER1"
_SUMMED_FROM: Final = 16
HEAD_BYTES: Final = _HEADER.size + 2 * 1024
"""Holds every header."""
_NAME: Final = re.compile(rf"[0-9a-f]{{2}}/([0-9a-f]{{{2 * DIGEST_BYTES}}})\.([0-9a-f]{{16}})\.([0-9a-f]{{16}})")


class Name(NamedTuple):
    """What a name says."""

    digest: bytes
    number: int
    allocation_id: int

    def __str__(self) -> str:
        digest = self.digest.hex()
        return f"{digest[:2]}/{digest}.{self.number:016x}.{self.allocation_id:016x}"


def name_of(about: TierObject, number: int) -> Name:
    """The name under which an object is written."""
    return Name(key_digest(about.key), number, about.allocation_id)


def parse_name(text: str) -> Name | None:
    """What a name says, or None where it is none of ours."""
    match = _NAME.fullmatch(text)
    return Name(bytes.fromhex(match[1]), int(match[2], 16), int(match[3], 16)) if match else None


def pack_header(about: TierObject) -> bytes:
    """What stands before the data."""
    key, parent = about.key.encode(), about.parent.encode()
    fields = (about.allocation_id, about.size_bytes, about.checksum, len(key), len(parent))
    unsummed = _HEADER.pack(_MAGIC, 0, *fields) + key + parent
    return _HEADER.pack(_MAGIC, _sum(unsummed), *fields) + key + parent


def unpack_header(data: bytes | memoryview) -> tuple[TierObject, int] | None:
    """The object and the length of its header, or None where it is damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, header_sum, allocation_id, size_bytes, checksum, key_bytes, parent_bytes = _HEADER.unpack_from(data)
    length = _HEADER.size + key_bytes + parent_bytes
    if magic != _MAGIC or len(data) < length or _sum(data[:length]) != header_sum:
        return None
    names = bytes(data[_HEADER.size : length])
    about = TierObject(
        key=names[:key_bytes].decode(),
        parent=names[key_bytes:].decode(),
        allocation_id=allocation_id,
        size_bytes=size_bytes,
        checksum=checksum,
    )
    return about, length


def _sum(header: bytes | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(header[_SUMMED_FROM:])
