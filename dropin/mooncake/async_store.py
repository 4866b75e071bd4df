"""The store for programs with an event loop: every method of it, in a thread."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from mooncake.store import MooncakeDistributedStore


class MooncakeDistributedStoreAsync:
    """`await store.get(key)` and so on; a call that is cancelled goes on in its thread, which may use the caller's memory."""

    def __init__(self) -> None:
        self._store = MooncakeDistributedStore()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call
