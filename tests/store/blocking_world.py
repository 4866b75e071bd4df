"""A master and nodes on a loop of their own, and stores for the threads of a test."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from mooncake_core.store.blocking import BlockingStore, StoreSettings
from mooncake_core.store.client import PutObject, PutOptions
from mooncake_core.transfer.contract import Transport
from mooncake_core.wire.loop_thread import LoopThread
from tests.store.world import World, world

T = TypeVar("T")


class BlockingWorld:
    """Drives a World from outside of its loop."""

    def __init__(self, loop: LoopThread, inner: World) -> None:
        self._loop = loop
        self.inner = inner
        self._stores: list[BlockingStore] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the loop of master and nodes."""
        return self._loop.run(work)

    def store(self, transports: Sequence[str | type[Transport]] | None = None, **settings: Any) -> BlockingStore:
        """One more, as a program of its own would have."""
        made = BlockingStore(
            StoreSettings(
                master_address=self.inner.address.url,
                name=f"store-{len(self._stores)}",
                host_id="h",
                transports=transports or self.inner.transports,  # type: ignore[arg-type]
                **settings,
            )
        )
        self._stores.append(made)
        return made

    def hits(self) -> int:
        """Objects that the master was asked for, and found."""

        async def count() -> int:
            return self.inner.pool.report(0).hits

        return self.run(count())

    def check(self) -> list[str]:
        """The books of the pool."""

        async def work() -> list[str]:
            return self.inner.pool.check()

        return self.run(work())

    def num_writing(self) -> int:
        async def count() -> int:
            return self.inner.pool.report(0).num_writing

        return self.run(count())

    def restart_master(self) -> None:
        """A new term, at the same address; the nodes come back to it."""

        async def work() -> None:
            await self.inner.stop_master()
            await self.inner.start_master(2, self.inner.address)
            for name in self.inner.nodes:
                await self.inner.join(name)

        self.run(work())

    def close_stores(self) -> None:
        for store in self._stores:
            store.close()


@contextmanager
def blocking_world(*nodes: str, **options: Any) -> Iterator[BlockingWorld]:
    """As `world`, on a loop of its own."""
    loop = LoopThread("world")
    context = world(*nodes, **options)
    made = BlockingWorld(loop, loop.run(context.__aenter__()))
    try:
        yield made
    finally:
        made.close_stores()
        loop.run(context.__aexit__(None, None, None))  # type: ignore[arg-type]
        loop.close(_nothing)


def put(store: BlockingStore, *keys: str, size: int = 10_000, replicas: int = 1, upsert: bool = False) -> list[bytes]:
    """Puts objects of random bytes, which must succeed; the bytes."""
    values = [os.urandom(size) for _ in keys]
    objects = [
        PutObject(key=key, pieces=[memoryview(value)[:100], memoryview(value)[100:]])
        for key, value in zip(keys, values, strict=True)
    ]
    assert store.put(objects, replicas=replicas, options=PutOptions(upsert=upsert)) == [""] * len(keys)
    return values


def get(store: BlockingStore, *keys: str) -> list[bytes | str]:
    """Objects' bytes, or why there are none."""
    buffers: dict[int, bytearray] = {}

    def destination(index: int, size_bytes: int) -> list[memoryview]:
        buffers[index] = bytearray(size_bytes)
        return [memoryview(buffers[index])]

    codes = store.get(keys, destination)
    return [code or bytes(buffers[index]) for index, code in enumerate(codes)]


async def _nothing() -> None:
    pass
