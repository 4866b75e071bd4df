"""Block keys: equal keys mean equal prefixes in the same namespace.

key_i = H(key_{i-1}, tokens_i as little-endian u32), H = blake2b-128 whose first input is the namespace. Cryptographic on
purpose: a collision would hand one user another's cache, or silently wrong tokens.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Final

KEY_BYTES: Final = 16
_LENGTH: Final = struct.Struct("<I")


def namespace(fingerprint: bytes, *, tenant: str = "", cache_salt: str = "", adapter: str = "") -> bytes:
    """16 bytes that differ when any of the fields differs.

    `fingerprint` stands for weights, config, dtype, KV layout, TP shape and block_tokens (EngineInfo.fingerprint).
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"mooncake-ns-1")
    for field in (fingerprint, tenant.encode(), cache_salt.encode(), adapter.encode()):
        digest.update(_LENGTH.pack(len(field)))  # so that no two lists of fields read alike
        digest.update(field)
    return digest.digest()


def block_keys(space: bytes, token_ids: Sequence[int], block_tokens: int, *, limit: int | None = None) -> list[bytes]:
    """Keys of the full blocks of a token sequence, at most `limit` of them."""
    count = len(token_ids) // block_tokens
    count = count if limit is None else min(count, limit)
    tokens = array("I", token_ids[: count * block_tokens])
    if sys.byteorder == "big":
        tokens.byteswap()
    data = memoryview(tokens).cast("B")
    step = block_tokens * tokens.itemsize
    keys: list[bytes] = []
    key = space
    for start in range(0, count * step, step):
        digest = hashlib.blake2b(key, digest_size=KEY_BYTES)
        digest.update(data[start : start + step])
        key = digest.digest()
        keys.append(key)
    return keys


def reusable_blocks(num_tokens: int, block_tokens: int) -> int:
    """Blocks of a prompt that may come from the cache: at least one token is always computed."""
    return max(0, num_tokens - 1) // block_tokens


def pool_key(key: bytes) -> str:
    """A block key as the pool names its object."""
    return key.hex()


def block_key(name: str) -> bytes | None:
    """The block key behind a pool object's name; None where the object is no block."""
    if len(name) != 2 * KEY_BYTES:
        return None
    try:
        return bytes.fromhex(name)
    except ValueError:
        return None
