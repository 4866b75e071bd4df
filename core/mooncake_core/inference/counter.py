"""A counter-based generator: the same (seed, position) gives the same number anywhere, in any batch."""

from __future__ import annotations

import hashlib
import struct
from typing import Final

_INPUT: Final = struct.Struct("<QQ")
_MANTISSA_BITS: Final = 53


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for the token that stands at `position` of a sequence."""
    digest = hashlib.blake2b(_INPUT.pack(seed & (2**64 - 1), position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> (64 - _MANTISSA_BITS)) / (1 << _MANTISSA_BITS)
