"""The store for programs with an event loop."""

from __future__ import annotations

import asyncio

import pytest

from mooncake.async_store import MooncakeDistributedStoreAsync

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]


async def test_calls_go_on_beside_each_other(master: str) -> None:
    store = MooncakeDistributedStoreAsync()
    assert await store.setup("127.0.0.1", "P2PHANDSHAKE", 16 << 20, 1 << 20, "tcp", "", master) == 0
    keys = [f"async-{number}" for number in range(10)]
    assert await asyncio.gather(*(store.put(key, key.encode()) for key in keys)) == [0] * 10
    assert await asyncio.gather(*(store.get(key) for key in keys)) == [key.encode() for key in keys]
    assert await store.close() == 0
