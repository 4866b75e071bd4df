"""Copies an object out of a tier and verifies it in one pass."""

from __future__ import annotations

import hashlib
from typing import Final

from mooncake_core.store.checksums import Digest

CHUNK_BYTES: Final = 256 << 10
"""Is in the cache still when it is summed; and the sum of so much leaves the interpreter lock to others."""
DIGEST_BYTES: Final = 16


def copy_verified(source: memoryview, target: memoryview, checksum: int) -> bool:
    """Fills `target` from `source`; whether the lengths agree and the bytes now there have that checksum."""
    if source.nbytes != target.nbytes:
        return False
    digest = Digest()
    for start in range(0, source.nbytes, CHUNK_BYTES):
        part = target[start : start + CHUNK_BYTES]
        part[:] = source[start : start + CHUNK_BYTES]
        digest.update(part)
    return digest.intdigest() == checksum


def key_digest(key: str) -> bytes:
    """A short name for a key of any length."""
    return hashlib.blake2b(key.encode(), digest_size=DIGEST_BYTES).digest()
