"""What the admin port shows: the master's parts, in one place."""

from __future__ import annotations

import asyncio
import inspect
import math
from dataclasses import dataclass
from typing import TypeVar

from mooncake_core.roles.master.cache_report import CacheReporter
from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.roles.master.members import Members
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.telemetry.loop_pauses import LoopPauses
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.inspection import CacheReport, InspectCache
from mooncake_core.wire.messages.tasks import DrainStatus
from mooncake_core.wire.server import Call

M = TypeVar("M")


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterState:
    """Reads from the other parts."""

    term: int
    address: str
    """host:port of the control port."""
    members: Members
    pool: PoolDriver
    conductor: ConductorDriver
    cache: CacheReporter
    pauses: LoopPauses

    @property
    def num_requests(self) -> int:
        """Placed and not ended."""
        return self.conductor.conductor.num_requests

    def report(self) -> CacheReport:
        """The pool in numbers."""
        return self.cache.report(InspectCache())

    def leaving(self) -> set[str]:
        """Members that are about to leave."""
        return {record.join.name for record in self.members.records() if record.draining}

    def drain_of(self, name: str) -> DrainStatus | None:
        """How far a node's draining is; None where it does not drain."""
        return self.pool.pool.drain_of(name)

    async def ask(self, message: Message, reply_type: type[M]) -> M:
        """What the pool answers a client."""
        answer = self.pool.handlers()[type(message)](message, Call("http", math.inf))
        found = await answer if inspect.isawaitable(answer) else answer
        assert isinstance(found, reply_type)
        return found

    async def let_go_on(self) -> None:
        """Between two slices of something long: everybody else's turn."""
        await asyncio.sleep(0)

    def member_states(self) -> list[tuple[str, str]]:
        """(role, ready or draining) of each member."""
        return [(record.join.role, "draining" if record.draining else "ready") for record in self.members.records()]
