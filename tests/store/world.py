"""A master, nodes and a client in one process, over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from mooncake_core.address import HostPort
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.store import events as p
from mooncake_core.store.checksums import Choice
from mooncake_core.store.client import PutObject, StoreClient
from mooncake_core.store.evictions import LRU
from mooncake_core.store.layout import Slot
from mooncake_core.store.node import Node
from mooncake_core.store.pool import Pool
from mooncake_core.store.pool_settings import PoolSettings
from mooncake_core.transfer.contract import Transport
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.client import Client, Clients
from mooncake_core.wire.server import Server

ANY = HostPort("127.0.0.1", 0)
SIZE = 10_000
PATIENCE_S = 30.0
"""Of a put or get that is to succeed: a machine that stands still for seconds fails none."""


class World:
    """A master, nodes, and a client, in one process and over loopback."""

    def __init__(
        self,
        transports: Sequence[str | type[Transport]],
        *,
        read_lease_s: float,
        writer_deadline_s: float,
        checksum: Choice,
        quotas: Mapping[str, int | None],
    ) -> None:
        self.transports = transports
        self.checksum = checksum
        self.settings = PoolSettings(read_lease_s=read_lease_s, writer_deadline_s=writer_deadline_s, quotas=quotas)
        self.clients = Clients("master")
        self.addresses: dict[str, str] = {}
        self.nodes: dict[str, tuple[Node, Server, TransferEngine]] = {}
        self.incarnations = itertools.count(1)
        self.engine = self.make_engine("client", 999)

    def make_engine(self, owner: str, incarnation: int) -> TransferEngine:
        return TransferEngine(owner=owner, host_id="h", incarnation=incarnation, transports=self.transports)

    async def start_master(self, term: int, address: HostPort = ANY) -> None:
        ids = itertools.count(term * 1000)
        pool = Pool(self.settings, term=term, next_id=lambda: next(ids), eviction=LRU)
        self.pool = pool
        self.driver = PoolDriver(pool, term=term, node_client=self._client_of, on_change=lambda change: None)
        self.server = Server("master", self.driver.handlers(), door=True)
        self.address = await self.server.start(address)
        self.master = Client(self.address.url, name="client")
        self.store = StoreClient(self.master, engine=self.engine, checksum=self.checksum)

    async def stop_master(self) -> None:
        await self.master.close()
        await self.driver.close()
        await self.server.close()

    async def add_node(self, name: str, capacity: int = 1 << 20) -> None:
        incarnation = next(self.incarnations)
        engine = self.make_engine(name, incarnation)
        node = Node(name, capacity_bytes=capacity, object_size_bytes=1024, incarnation=incarnation, engine=engine)
        server = Server(name, node.handlers())
        self.addresses[name] = (await server.start(ANY)).url
        self.nodes[name] = (node, server, engine)
        await self.join(name)

    async def join(self, name: str) -> None:
        node, _, _ = self.nodes[name]
        offer = node.offer()
        self.driver.feed(p.NodeJoined(name, offer.read.incarnation, offer))
        while self.pool.usage(name)[3] != "ready":
            await asyncio.sleep(0.002)

    def slot_of(self, name: str) -> tuple[int, Slot]:
        """Number and content of the first slot that a node has in use."""
        node = self.nodes[name][0]
        numbered = ((number, node._slot(number)) for number in range(node.offer().num_slots))
        return next((number, slot) for number, slot in numbered if slot is not None)

    def damage(self, name: str) -> None:
        """Flips a bit in the middle of a node's first object."""
        _, slot = self.slot_of(name)
        self.nodes[name][0]._view[slot.offset + slot.size_bytes // 2] ^= 1

    async def kill_node(self, name: str) -> None:
        node, server, engine = self.nodes.pop(name)
        await server.close()
        node.close()
        engine.close()

    async def close(self) -> None:
        await self.stop_master()
        for name in list(self.nodes):
            await self.kill_node(name)
        self.engine.close()
        await self.clients.close()

    def _client_of(self, name: str) -> Client | None:
        return self.clients.get(self.addresses[name]) if name in self.addresses else None

    async def put(self, *keys: str, replicas: int = 1, size: int = SIZE) -> tuple[list[str], list[bytes]]:
        values = [os.urandom(size) for _ in keys]
        objects = [
            PutObject(key=key, pieces=[memoryview(value)[:100], memoryview(value)[100:]], parent="")
            for key, value in zip(keys, values, strict=True)
        ]
        return await self.store.put(objects, timeout_s=PATIENCE_S, replicas=replicas), values

    async def get(self, *keys: str, size: int = SIZE) -> tuple[list[bool], list[bytes]]:
        buffers = [bytearray(size) for _ in keys]
        found = await self.store.get(keys, [[memoryview(buffer)] for buffer in buffers], timeout_s=PATIENCE_S)
        return found, [bytes(buffer) for buffer in buffers]


@asynccontextmanager
async def world(
    *nodes: str,
    transports: Sequence[str | type[Transport]] = ("tcp",),
    capacity: int = 1 << 20,
    read_lease_s: float = 5,
    writer_deadline_s: float = 5,
    checksum: Choice = "auto",
    quotas: Mapping[str, int | None] = {},
) -> AsyncIterator[World]:
    made = World(
        transports,
        read_lease_s=read_lease_s,
        writer_deadline_s=writer_deadline_s,
        checksum=checksum,
        quotas=quotas,
    )
    await made.start_master(1)
    try:
        for name in nodes:
            await made.add_node(name, capacity)
        yield made
    finally:
        await made.close()
