"""A master and a store node with an SSD tier, in processes of their own; the node can be killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mooncake_core.errors import MooncakeError
from mooncake_core.store.client import PutObject, StoreClient
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages.inspection import CacheReport, GetStatus, InspectCache, MemberStatus, Status

DRAM_BYTES = 1 << 20
SIZE = 50_000
PATIENCE_S = 30.0
CONFIG = """
cluster: tiers
master: {{port: 0, admin_port: 0}}
prefill: []
decode: []
pool: {{read_lease: 300ms}}
store:
  - capacity: 1MiB
    object_size: 8KiB
    tiers: [{{kind: lmdb, path: {path}, capacity: {capacity}, reserve: 0}}]
"""


class StoreCluster:
    """Writes objects whose bytes follow from their keys, and reads them back."""

    def __init__(self, folder: Path, capacity: str) -> None:
        self._folder = folder
        self._config = folder / "tiers.yaml"
        self._config.write_text(CONFIG.format(path=folder / "ssd", capacity=capacity))
        started = self._start("master")
        address = started["master_address"]
        self.admin_url = str(started["admin_url"])
        self._start("store", "--set", f"master.port={address.rpartition(':')[2]}")
        self._master = Client(address, name="test")
        self._engine = TransferEngine(owner="test", host_id="test", incarnation=1, transports=("tcp",))
        self.client = StoreClient(self._master, engine=self._engine, checksum="on")

    def _start(self, role: str, *arguments: str) -> dict[str, Any]:
        command = ["start", "-c", str(self._config), "--role", role, "--detach", "--json", *arguments]
        result = self.command(*command)
        assert result.returncode == 0, result.stderr
        state: dict[str, Any] = json.loads(result.stdout)
        return state

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mooncake_cli.main", *arguments]
        environ = {**os.environ, "XDG_RUNTIME_DIR": str(self._folder)}
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    async def close(self) -> None:
        await self._master.close()
        self._engine.close()
        assert self.command("stop").returncode == 0

    async def put(self, keys: Iterable[str]) -> None:
        """Puts objects; a full node is waited for."""
        for key in keys:
            item = PutObject(key=key, pieces=[memoryview(content(key))])
            while (await self.client.put([item], timeout_s=PATIENCE_S))[0] == "no_space":
                await asyncio.sleep(0.002)

    async def read(self, keys: Iterable[str]) -> set[str]:
        """The keys that are there; no byte may be wrong."""
        there = set()
        for key in keys:
            if await self._reads(key):
                there.add(key)
        return there

    async def _reads(self, key: str) -> bool:
        """Again where a busy machine was too slow for the lease: what is lost is not there any more."""
        for _ in range(5):
            target = bytearray(SIZE)
            (found,) = await self.client.get([key], [[memoryview(target)]], timeout_s=PATIENCE_S)
            assert not found or target == content(key), f"wrong bytes in {key}"
            if found or await self.client.exists([key], timeout_s=PATIENCE_S) == [False]:
                return found
        return False

    async def report(self) -> CacheReport:
        return await self._master.call(InspectCache(limit=1 << 20, check=True), CacheReport, timeout_s=PATIENCE_S)

    async def in_tier(self) -> set[str]:
        """What the master says is safe."""
        return {entry.key for entry in (await self.report()).entries if entry.tiered_on}

    async def kill(self) -> None:
        """kill -9 of the node, and waits until it is back and has told what it has."""
        (member,) = await self._nodes()
        os.kill(member.pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                nodes = [node for node in await self._nodes() if node.pid != member.pid and node.state == "ready"]
                if nodes and (await self.report()).tiers.get("store"):
                    return
                await asyncio.sleep(0.02)

    async def _nodes(self) -> list[MemberStatus]:
        try:
            status = await self._master.call(GetStatus(), Status, timeout_s=PATIENCE_S)
        except MooncakeError:
            return []
        return [member for member in status.members if member.role == "store"]


def content(key: str) -> bytes:
    return random.Random(key).randbytes(SIZE)


@asynccontextmanager
async def store_cluster(folder: Path, capacity: str = "64MiB") -> AsyncIterator[StoreCluster]:
    cluster = StoreCluster(folder, capacity)
    try:
        yield cluster
    finally:
        await cluster.close()
