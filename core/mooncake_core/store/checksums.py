"""One xxh3-64 sum per object, fed piece by piece as the bytes move."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import xxhash

from mooncake_core.store.waiting import all_ended
from mooncake_core.transfer.slices import total_bytes

ON_LOOP_BYTES: Final = 256 << 10
"""Longer sums are computed in a thread: xxhash runs without the interpreter lock."""

Digest = xxhash.xxh3_64
Fed = Sequence[tuple[xxhash.xxh3_64, Sequence[memoryview]]]


async def feed(pairs: Fed) -> None:
    """Takes pieces into the sums of their objects."""
    if sum(total_bytes(pieces) for _, pieces in pairs) <= ON_LOOP_BYTES:
        _feed(pairs)
    else:
        await all_ended([asyncio.to_thread(_feed, pairs)])


def _feed(pairs: Fed) -> None:
    for digest, pieces in pairs:
        for piece in pieces:
            digest.update(piece)
