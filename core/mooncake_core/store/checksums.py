"""One xxh3-64 sum per object, fed piece by piece as the bytes move."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Final, Literal

import xxhash

from mooncake_core import registry
from mooncake_core.errors import PluginUnknown
from mooncake_core.store.waiting import all_ended
from mooncake_core.transfer.contract import Capabilities
from mooncake_core.transfer.local import LocalTransport
from mooncake_core.transfer.slices import total_bytes

ON_LOOP_BYTES: Final = 1 << 20
"""Longer sums are computed in a thread: xxhash runs without the interpreter lock. Handing over takes longer than a MiB does."""

NO_CHECKSUM: Final = 0
"""Of an object that was not written from its beginning to its end: it cannot be verified."""

Choice = Literal["auto", "on", "off"]
"""When a get verifies what it read; auto: when it came over a network. With off a put gives objects no checksum either."""

Digest = xxhash.xxh3_64
Fed = Sequence[tuple[xxhash.xxh3_64, Sequence[memoryview]]]


def wanted(choice: Choice, path: str) -> bool:
    """Whether bytes that a transport brought are to be verified."""
    return choice == "on" or (choice == "auto" and not _stays_on_host(path))


async def feed(pairs: Fed) -> None:
    """Takes pieces into the sums of their objects. Also a cancelled call returns only when that is done."""
    if are_short(pairs):
        feed_now(pairs)
    else:
        await all_ended([asyncio.to_thread(feed_now, pairs)])


def are_short(pairs: Fed) -> bool:
    """Whether the event loop can spare the time."""
    return sum(total_bytes(pieces) for _, pieces in pairs) <= ON_LOOP_BYTES


def feed_now(pairs: Fed) -> None:
    for digest, pieces in pairs:
        for piece in pieces:
            digest.update(piece)


@cache
def _stays_on_host(path: str) -> bool:
    """Of a transport that is no installed plugin nothing is known: as if it were a network."""
    if path == LocalTransport.name:
        return True
    try:
        capabilities: Capabilities = registry.load("transport", path).capabilities
    except PluginUnknown:
        return False
    return capabilities.same_host_only
