"""Drives the Membership: who joins, reports and goes, and who must hear of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from mooncake_core.conductor import events as e
from mooncake_core.errors import MemberExists, MooncakeError
from mooncake_core.roles.drive import SHORTEST_WAIT_S
from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.roles.master.silent_gateways import SilentGateways
from mooncake_core.roles.tasks import Tasks
from mooncake_core.store import events as p
from mooncake_core.wire.client import Client, Clients
from mooncake_core.wire.membership import (
    Change,
    MemberDraining,
    MemberJoined,
    MemberLeft,
    MemberReported,
    Membership,
    Record,
)
from mooncake_core.wire.messages.envelope import Done, Ping
from mooncake_core.wire.messages.membership import Heartbeat, Join, Joined, Leave
from mooncake_core.wire.server import Call, Handler

ANSWER_S: Final = 1.0

_log = logging.getLogger(__name__)


class Members:
    """Owns the Membership object; tells pool and Conductor what has changed."""

    def __init__(self, clients: Clients, *, term: int, heartbeat_interval_s: float, lease_s: float) -> None:
        self._clients = clients
        self._joined = Joined(term=term, heartbeat_interval_s=heartbeat_interval_s, lease_s=lease_s)
        self._membership = Membership(lease_s)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()
        self._pool: PoolDriver | None = None
        self._conductor: ConductorDriver | None = None
        self._silent_gateways = SilentGateways(self._gateway_left)

    def listen(self, pool: PoolDriver, conductor: ConductorDriver) -> None:
        """Who hears of changes."""
        self._pool, self._conductor = pool, conductor

    def handlers(self) -> dict[type, Handler]:
        """What members say."""
        return {Join: self._join, Heartbeat: self._heartbeat, Leave: self._leave}

    def records(self) -> Sequence[Record]:
        """All members, by name."""
        return [self._membership.records[name] for name in sorted(self._membership.records)]

    def now(self) -> float:
        return self._loop.time()

    def client_of(self, name: str) -> Client | None:
        """To a member's control server; None when it has left."""
        record = self._membership.records.get(name)
        return self._clients.get(record.join.control_address) if record and record.join.control_address else None

    def address_of(self, name: str) -> str:
        """Of a member's control server; empty when it has left."""
        record = self._membership.records.get(name)
        return record.join.control_address if record else ""

    async def close(self) -> None:
        """No more expiries."""
        if self._timer:
            self._timer.cancel()
        await self._silent_gateways.close()

    async def _join(self, message: Join, call: Call) -> Joined:
        await self._check_name(message)
        self._apply(self._membership.join(message, self.now()))
        return self._joined

    def _heartbeat(self, message: Heartbeat, call: Call) -> Done:
        self._apply(self._membership.heartbeat(message, self.now()))
        return Done()

    def _leave(self, message: Leave, call: Call) -> Done:
        self._apply(self._membership.leave(message))
        return Done()

    async def _check_name(self, join: Join) -> None:
        """Refuses a second process of the same name; one that does not answer is taken for dead, and replaced.

        Raises:
            MemberExists: the first one answers.
        """
        record = self._membership.records.get(join.name)
        if record is None or record.join.incarnation == join.incarnation:
            return
        known = record.join
        if not known.control_address or known.control_address == join.control_address:
            return
        try:
            await self._clients.get(known.control_address).call(Ping(), Done, timeout_s=ANSWER_S)
        except MooncakeError:
            return
        raise MemberExists(
            f"{join.name} is a member of the cluster already: process {known.pid}, which answers at "
            f"{known.control_address}; stop it first, or start this one under another name"
        )

    def _apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            match change:
                case MemberJoined(join):
                    self._welcome(join)
                case MemberLeft(join, reason, silent):
                    self._part(join, reason, silent=silent)
                case MemberDraining(join):
                    self._drain(join)
                case MemberReported(name, load):
                    if self._conductor:
                        self._conductor.feed(e.LoadReported(name, load))
        self._arm()

    def _welcome(self, join: Join) -> None:
        _log.info("%s %s has joined (process %d)", join.role, join.name, join.pid)
        if join.segment and self._pool:
            self._pool.feed(p.NodeJoined(join.name, join.incarnation, join.segment))
        if join.instance and self._conductor and (join.role == "prefill" or join.role == "decode"):
            self._conductor.feed(e.InstanceJoined(join.name, join.role, join.instance))
        if join.role == "gateway":
            self._silent_gateways.joined(join)

    def _drain(self, join: Join) -> None:
        _log.info("%s %s gets no new work: it is about to leave", join.role, join.name)
        if self._conductor:
            self._conductor.feed(e.InstanceDraining(join.name))

    def _part(self, join: Join, reason: str, *, silent: bool) -> None:
        _log.info("%s %s is gone: it %s", join.role, join.name, reason)
        if join.segment and self._pool:
            self._pool.feed(p.NodeLeft(join.name, join.incarnation))
        if join.instance and self._conductor:
            self._conductor.feed(e.InstanceLeft(join.name))
        if join.role == "gateway" and silent:
            self._silent_gateways.silent(join)
        elif join.role == "gateway":
            self._gateway_left(join.name)
        if join.control_address:
            self._tasks.start(self._clients.drop(join.control_address))

    def _gateway_left(self, name: str) -> None:
        if self._conductor:
            self._conductor.gateway_left(name)

    def _arm(self) -> None:
        """Wakes when the first lease ends. A timer that is early arms itself again."""
        if self._timer is None and (deadline := self._membership.next_deadline()) is not None:
            self._timer = self._loop.call_at(max(deadline, self.now() + SHORTEST_WAIT_S), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._apply(self._membership.tick(self.now()))
