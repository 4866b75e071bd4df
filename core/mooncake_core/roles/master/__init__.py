"""The master role: membership, the pool's index and the Conductor, each driven on one event loop."""

from __future__ import annotations

import itertools
import random
import socket
import time
from typing import TYPE_CHECKING

from mooncake_core import registry
from mooncake_core.address import HostPort
from mooncake_core.conductor.conductor import Conductor
from mooncake_core.conductor.scheduler import SchedulerOptions, make_conductor
from mooncake_core.config.schema import ClusterConfig, MasterConfig
from mooncake_core.roles.context import RoleContext
from mooncake_core.roles.master.cache_report import CacheReporter
from mooncake_core.roles.master.conductor import ConductorDriver
from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.roles.master.inspection import Inspection
from mooncake_core.roles.master.members import Members
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.roles.master.term import next_term
from mooncake_core.roles.master.timelines import Timelines
from mooncake_core.roles.run_directory import RunDirectory
from mooncake_core.store.placement import strategy
from mooncake_core.store.pool import Pool
from mooncake_core.store.pool_settings import PoolSettings
from mooncake_core.wire.server import Server

if TYPE_CHECKING:
    from mooncake_core.roles.master.http.port import AdminPort


async def run(context: RoleContext) -> None:
    """Serves until told to stop."""
    section = context.spec.section
    assert isinstance(section, MasterConfig)  # what config.processes gives a master
    term = next_term(RunDirectory(context.config.cluster).path / "term", time.time_ns() // 1000)
    members = Members(
        context.clients, term=term, heartbeat_interval_s=section.heartbeat_interval, lease_s=section.lease
    )
    conductor = ConductorDriver(
        _conductor(context.config),
        client_of=members.client_of,
        address_of=members.address_of,
        spans=context.spans,
        prefetch=lambda keys: pool.prefetch(keys),
        copy=lambda keys, node: pool.copy(keys, node),
    )
    timelines = Timelines(members, context.spans)
    pool = PoolDriver(
        _pool(context.config, term), term=term, node_client=members.client_of, on_change=conductor.on_pool_change
    )
    members.listen(pool, conductor)
    cache = CacheReporter(pool, conductor)
    inspection = Inspection(context.config, term, members=members, pool=pool, conductor=conductor, cache=cache)
    parts = (members, pool, conductor, inspection, timelines)
    handlers = {kind: handler for part in parts for kind, handler in part.handlers().items()}
    server = Server(context.name, handlers, key=context.key, door=True, cluster=context.config.cluster)
    listener: socket.socket | None = None
    admin: AdminPort | None = None
    try:
        if section.admin_port is not None:  # first: members that find a master lose it if it cannot have this port
            listener = _admin_listener(context.config, section.admin_port)
        address = await server.start(HostPort(section.host, section.port))
        if listener is not None:
            state = MasterState(
                term=term,
                address=str(address),
                members=members,
                pool=pool,
                conductor=conductor,
                cache=cache,
                pauses=context.pauses,
            )
            admin = _open_admin_port(context.config, listener, state)
        context.announce(address.url, admin_url=admin.url if admin else "")
        await context.stop.wait()
    finally:
        if admin is not None:
            await admin.close()
        elif listener is not None:
            listener.close()
        await server.close()
        await members.close()
        await pool.close()
        await conductor.close()
        await context.clients.close()


def _admin_listener(config: ClusterConfig, port: int) -> socket.socket:
    from mooncake_core.roles.master.http.port import open_listener  # with an HTTP server, which takes a while to import

    return open_listener(config, port)


def _open_admin_port(config: ClusterConfig, listener: socket.socket, state: MasterState) -> AdminPort:
    from mooncake_core.roles.master.http.port import AdminPort

    return AdminPort(config, listener, state)


def _conductor(config: ClusterConfig) -> Conductor:
    scheduler = config.scheduler
    return make_conductor(
        SchedulerOptions(
            policy=scheduler.policy,
            equal_within=scheduler.equal_within,
            spread_shared=scheduler.spread_shared,
            replicate=scheduler.replicate,
            admission=scheduler.admission,
            balancing_threshold=scheduler.balancing_threshold,
            ttft_slo_s=scheduler.ttft_slo,
            tbt_slo_s=scheduler.tbt_slo,
            decode_time_s=scheduler.decode_time,
            headroom=scheduler.headroom,
            shed_weight=scheduler.shed_weight,
            plan_roles=scheduler.plan_roles,
            fairness=scheduler.fairness,
            seed=scheduler.seed,
            max_decisions=scheduler.decisions,
        )
    )


def _pool(config: ClusterConfig, term: int) -> Pool:
    settings = PoolSettings(
        read_lease_s=config.pool.read_lease,
        writer_deadline_s=config.pool.writer_deadline,
        high_watermark=config.pool.high_watermark,
        low_watermark=config.pool.low_watermark,
        quotas={name: tenant.quota for name, tenant in config.pool.tenants.items()},
        promote_timeout_s=config.pool.promote_timeout,
    )
    ids = itertools.count(term)  # terms are far enough apart: no two masters give the same id
    eviction = registry.load("eviction", config.pool.eviction)
    placement = strategy(config.pool.placement, random.Random(term))
    return Pool(settings, term=term, next_id=lambda: next(ids), eviction=eviction, placement=placement)
