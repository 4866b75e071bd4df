"""Batches over the wire cost a real master the same with a million objects as with ten thousand, and it never stands still
for long: `scripts/acceptance live_scale`."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from mooncake_core.store.client import PutObject, StoreClient
from mooncake_core.testing.cluster import Cluster
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.host import default_host_id
from mooncake_core.wire.client import Client

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]
COUNTS = (10_000, 100_000, 1_000_000)
BATCH = 64
FILL_AT_ONCE = 10 * BATCH
ROUNDS = 40
QUESTIONS = 20
"""Of each kind, in each round."""
MOST_APART = 1.3
VALUE = memoryview(bytes(range(256)) * 2)
LEAST_BYTES = 16 << 20
TIMEOUT_S = 30.0
CONFIG = """
cluster: scale
master: {{port: 0, admin_port: 0}}
gateway: {{port: 0}}
store: [{{name: node, capacity: {capacity_bytes}, object_size: 1KiB}}]
prefill: []
decode: []
"""


def key_of(number: int) -> str:
    return f"{number:032x}"


@dataclass
class Pool:
    """A running cluster with so many objects, and one client of it that remembers no leases."""

    cluster: Cluster
    num_objects: int
    store: StoreClient
    num_put: int = 0
    spent_s: dict[str, list[float]] = field(default_factory=lambda: {"put": [], "get": [], "exists": []})
    """By batch, the mean of each round."""

    async def fill(self) -> None:
        while self.num_put < self.num_objects:
            await self.put(FILL_AT_ONCE)

    async def put(self, count: int = BATCH) -> None:
        """The next ones, in chains as long as a batch, as the blocks of prompts are."""
        objects = [
            PutObject(key=key_of(number), parent=key_of(number - 1) if number % BATCH else "", pieces=[VALUE])
            for number in range(self.num_put, self.num_put + count)
        ]
        assert set(await self.store.put(objects, timeout_s=TIMEOUT_S)) == {""}
        self.num_put += count

    async def get(self) -> None:
        buffers = [bytearray(len(VALUE)) for _ in range(BATCH)]
        assert all(await self.store.get(self._some(), [[memoryview(b)] for b in buffers], timeout_s=TIMEOUT_S))
        assert all(buffer == VALUE for buffer in buffers)

    async def exists(self) -> None:
        assert all(await self.store.exists(self._some(), timeout_s=TIMEOUT_S))

    def longest_pause_s(self) -> float:
        metrics = httpx.get(f"{self.cluster.state.admin_url}/metrics").text
        name = "mooncake_event_loop_longest_pause_seconds "
        return next(float(line.removeprefix(name)) for line in metrics.splitlines() if line.startswith(name))

    async def measure(self, name: str, do: Callable[[], Awaitable[None]], times: int) -> None:
        begun = time.perf_counter()
        for _ in range(times):
            await do()
        self.spent_s[name].append((time.perf_counter() - begun) / times)

    def _some(self) -> list[str]:
        first = random.randrange(self.num_objects // BATCH) * BATCH
        return [key_of(number) for number in range(first, first + BATCH)]


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[list[Cluster]]:
    with ExitStack() as started:
        made = []
        for count in COUNTS:
            folder = tmp_path / str(count)
            folder.mkdir()
            config = folder / "scale.yaml"
            config.write_text(CONFIG.format(capacity_bytes=LEAST_BYTES + count * 1280))
            made.append(Cluster(config, folder))
            started.callback(made[-1].stop)
        yield made


async def measure_all(clusters: list[Cluster]) -> list[Pool]:
    """All take turns: the processor's clock is another one each few seconds."""
    engine = TransferEngine(owner="scale", host_id=default_host_id(), incarnation=os.getpid(), transports=["shm"])
    masters = [Client(cluster.state.master_address, name="scale") for cluster in clusters]
    pools = [
        Pool(cluster, count, StoreClient(master, engine=engine))
        for cluster, count, master in zip(clusters, COUNTS, masters, strict=True)
    ]
    for pool in pools:
        await pool.fill()
    for _ in range(ROUNDS):
        for pool in pools:
            await pool.measure("put", pool.put, 1)
            await pool.measure("get", pool.get, QUESTIONS)
            await pool.measure("exists", pool.exists, QUESTIONS)
    for master in masters:
        await master.close()
    engine.close()
    return pools


def test_batches_take_as_long_whatever_the_number_of_objects(clusters: list[Cluster]) -> None:
    pools = asyncio.run(measure_all(clusters))
    for pool in pools:
        put, get, exists = (1 / statistics.median(spent_s) for spent_s in pool.spent_s.values())
        print(
            f"\n{pool.num_objects:,} objects: {put:,.0f} batches of {BATCH} put per second, {get:,.0f} got, "
            f"{exists:,.0f} asked for; the longest pause of the master's event loop, since it was started, was "
            f"{pool.longest_pause_s() * 1e3:.0f} ms"
        )
        assert pool.cluster.cache().num_objects == pool.num_put
    for name in pools[0].spent_s:
        taken_s = [statistics.median(pool.spent_s[name]) for pool in pools]
        assert max(taken_s) <= MOST_APART * min(taken_s), name
