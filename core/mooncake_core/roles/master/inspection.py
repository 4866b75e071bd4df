"""Answers what `mooncake status` and `mooncake inspect` ask."""

from __future__ import annotations

from mooncake_core.config.schema import ClusterConfig
from mooncake_core.roles.master.cache_report import CacheReporter
from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.roles.master.members import Members
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.wire.membership import Record
from mooncake_core.wire.messages.inspection import (
    CacheReport,
    Decisions,
    GetStatus,
    InspectCache,
    InspectDecisions,
    MemberStatus,
    Status,
)
from mooncake_core.wire.server import Call, Handler


class Inspection:
    """Reads from the other parts of the master."""

    def __init__(
        self,
        config: ClusterConfig,
        term: int,
        *,
        members: Members,
        pool: PoolDriver,
        conductor: ConductorDriver,
        cache: CacheReporter,
    ) -> None:
        self._cluster = config.cluster
        self._awaits_instances = bool(config.prefill or config.decode)
        self._awaits_nodes = bool(config.store)
        self._term = term
        self._members = members
        self._pool = pool
        self._conductor = conductor
        self._started = members.now()
        self._reporter = cache

    def handlers(self) -> dict[type, Handler]:
        return {GetStatus: self._status, InspectCache: self._cache, InspectDecisions: self._decisions}

    async def _status(self, message: GetStatus, call: Call) -> Status:
        serving_needs = self._conductor.conductor.missing()
        return Status(
            cluster=self._cluster,
            term=self._term,
            uptime_s=self._members.now() - self._started,
            members=[self._member(record) for record in self._members.records()],
            missing=self._pool_needs() if self._is_pool() else serving_needs,
            num_requests=self._conductor.conductor.num_requests,
            serving_needs=serving_needs,
        )

    def _is_pool(self) -> bool:
        """The YAML has no instances, and none has joined that another YAML has."""
        return not self._awaits_instances and not any(record.join.instance for record in self._members.records())

    def _pool_needs(self) -> list[str]:
        """A pool whose YAML has no nodes gets them from engines, which come and go."""
        has_node = any(record.join.segment for record in self._members.records())
        return ["no node has joined"] if self._awaits_nodes and not has_node else []

    async def _cache(self, message: InspectCache, call: Call) -> CacheReport:
        return self._reporter.report(message)

    async def _decisions(self, message: InspectDecisions, call: Call) -> Decisions:
        found = self._conductor.conductor.decisions(
            message.limit, message.request_id, self._conductor.now(), message.num_candidates
        )
        return Decisions(decisions=found)

    def _member(self, record: Record) -> MemberStatus:
        join = record.join
        capacity, used, num_objects, state = self._pool.pool.usage(join.name)
        drain = self._pool.pool.drain_of(join.name)
        return MemberStatus(
            name=join.name,
            role=join.role,
            host_id=join.host_id,
            control_address=join.control_address,
            pid=join.pid,
            state=_state(record, drain.state if drain else state),
            last_heard_s=self._members.now() - record.heard_at,
            capacity_bytes=capacity,
            used_bytes=used,
            num_objects=num_objects,
            local_to=join.local_to,
            model=join.instance.model.name if join.instance else "",
            load=record.load,
            drain=drain,
        )


def _state(record: Record, segment_state: str) -> str:
    if record.draining:
        return "draining"
    return segment_state if record.join.segment else "ready"
