"""The cluster that the machine plays with, its clients, and how it waits until the master knows what lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from mooncake_core.errors import MooncakeError
from mooncake_core.store.blocking import BlockingStore, StoreSettings
from mooncake_core.store.client import StoreClient
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.host import default_host_id
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages.inspection import CacheReport, GetStatus, InspectCache, Status
from mooncake_core.wire.messages.objects import Describe, Described, ObjectDescription
from mooncake_core.wire.messages.pool import PutEnd, PutStarted
from tests.endurance.processes import Processes

TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 30.0
YAML = """
cluster: endurance
master: {{port: 0, admin_port: null, heartbeat_interval: 200ms, lease: 1500ms}}
prefill: []
decode: []
pool: {{read_lease: 500ms, writer_deadline: 2s}}
store:
{nodes}
"""
CAPACITY = {"plain": "16MiB", "tight": "1MiB", "tiered": "1MiB"}


class Watched:
    """A client of the master that notes where what is put was written."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys: dict[int, str] = {}
        self.nodes: dict[str, list[str]] = {}
        """Key → nodes of its last commit."""

    async def call(self, message: Any, reply_type: type[Any], *, timeout_s: float) -> Any:
        if isinstance(message, PutEnd):
            for commit in message.commits:
                self.nodes[self._keys.pop(commit.allocation_id)] = list(commit.nodes)
        reply = await self._client.call(message, reply_type, timeout_s=timeout_s)
        if isinstance(reply, PutStarted):
            self._keys |= {grant.allocation_id: grant.key for grant in reply.grants if grant.placements}
        return reply


class World:
    """A master and three nodes. `kind`: plain; tight, where objects are evicted; tiered, where they then go to an SSD."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.failure: BaseException | None = None
        """Something was wrong: nothing more can be said of it."""
        self.runner = asyncio.Runner()
        self.processes = Processes(folder, YAML.format(nodes="\n".join(_node(kind, folder, i) for i in range(3))))
        self.runner.run(self._connect())

    async def _connect(self) -> None:
        self.wire = Client(self.processes.address, name="endurance")
        self.master = Watched(self.wire)
        self._engine = TransferEngine(
            owner="endurance", host_id="elsewhere", incarnation=os.getpid(), transports=["tcp"], timeout_s=TIMEOUT_S
        )
        self.client = StoreClient(self.master, engine=self._engine)
        """Over TCP, with checksums."""
        self.blocking = BlockingStore(
            StoreSettings(
                master_address=self.processes.address,
                name="blocking",
                host_id=default_host_id(),
                timeout_s=TIMEOUT_S,
            )
        )
        """Through shared memory, and it remembers leases."""

    def close(self) -> None:
        self.blocking.close()
        self.runner.run(self._disconnect())
        self.runner.close()
        self.processes.close()

    async def _disconnect(self) -> None:
        await self.wire.close()
        self._engine.close()

    async def ask(self, message: Any, reply_type: type[Any]) -> Any:
        return await self.wire.call(message, reply_type, timeout_s=TIMEOUT_S)

    async def report(self) -> CacheReport:
        report: CacheReport = await self.ask(InspectCache(check=True), CacheReport)
        return report

    async def describe(self, keys: Iterable[str]) -> Sequence[ObjectDescription | None]:
        described: Described = await self.ask(Describe(keys=list(keys)), Described)
        return described.objects

    async def settle(self) -> None:
        """The master knows all nodes that live, and what they hold in DRAM."""
        await self.until(self._is_settled, "the master did not get to know all nodes")

    async def _is_settled(self) -> bool:
        status: Status = await self.ask(GetStatus(), Status)
        known = {(member.name, member.pid) for member in status.members if member.state == "ready"}
        return {(name, self.processes.by_name[name].pid) for name in self.processes.alive()} <= known

    async def is_gone(self, name: str) -> bool:
        """Whether the master takes a node for dead."""
        status: Status = await self.ask(GetStatus(), Status)
        return name not in [member.name for member in status.members]

    async def until(self, condition: Any, what: str, patience_s: float = PATIENCE_S) -> None:
        """Waits; an answer that does not come is none."""
        deadline = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(MooncakeError):
                if await condition():
                    return
            assert time.monotonic() < deadline, f"{what} within {patience_s:g}s: {await self.state()}"
            await asyncio.sleep(0.02)

    async def state(self) -> str:
        """For messages."""
        try:
            report = await self.report()
        except MooncakeError as error:
            return f"no answer: {error}"
        return f"{report.num_objects} objects, {report.num_writing} being written, {report.nodes}, {report.problems}"

    def logs(self) -> dict[str, str]:
        """What the processes have said."""
        return {name: process.log for name, process in self.processes.by_name.items()}


def _node(kind: str, folder: Path, number: int) -> str:
    node = f"  - {{name: n{number}, capacity: {CAPACITY[kind]}, object_size: 2KiB"
    if kind == "tiered":
        node += f", tiers: [{{kind: lmdb, path: {folder / 'ssd'}, capacity: 64MiB, reserve: 0}}]"
    return node + "}"
