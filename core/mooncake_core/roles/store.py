"""The store role: a node that contributes a segment of DRAM to the pool."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

from mooncake_core.address import HostPort
from mooncake_core.config.schema import NodeConfig
from mooncake_core.errors import MooncakeError
from mooncake_core.roles.context import RoleContext
from mooncake_core.roles.metrics import MetricsPort
from mooncake_core.store.node import Node
from mooncake_core.store.tiered_node import TieredNode
from mooncake_core.store.tiers.stack import open_tiers
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.client import Client
from mooncake_core.wire.member import Member
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import Join
from mooncake_core.wire.messages.tasks import DrainNode, Drains, QueryDrains
from mooncake_core.wire.server import Server

ASK_TIMEOUT_S: Final = 2.0
DRAIN_POLL_S: Final = 0.1


async def run(context: RoleContext) -> None:
    """Serves until told to stop."""
    section = context.spec.section
    host = context.spec.host
    assert isinstance(section, NodeConfig)  # what config.processes gives a store role
    engine = context.transfer_engine(host, section.data_port)
    node = _node(context, section, engine)
    metrics = MetricsPort(host, section.metrics_port, engine)
    server = Server(context.name, node.handlers(), key=context.key)
    try:
        address = await server.start(HostPort(host, 0))
        master = context.clients.get(context.master_address)
        member = Member(
            master,
            join=lambda: _join(context, node, address),
            load=lambda: None,
            on_joined=lambda joined: context.announce(address.url, metrics_url=metrics.url),
        )
        await context.serve(member, (lambda: _drain(context, master)) if section.drain_on_stop else None)
    finally:
        await server.close()
        await metrics.close()
        await context.clients.close()
        node.close()
        engine.close()


def _node(context: RoleContext, section: NodeConfig, engine: TransferEngine) -> Node:
    if not section.tiers:
        return Node(
            context.name,
            capacity_bytes=section.capacity,
            object_size_bytes=section.object_size,
            incarnation=context.incarnation,
            engine=engine,
            prefault=section.prefault,
        )
    return TieredNode(
        context.name,
        capacity_bytes=section.capacity,
        object_size_bytes=section.object_size,
        incarnation=context.incarnation,
        engine=engine,
        prefault=section.prefault,
        tiers=open_tiers(context.name, section.tiers),
    )


async def _drain(context: RoleContext, master: Client) -> None:
    """Has the master move what the node holds to others; ends when that is done, or when there is no time left."""
    draining = asyncio.create_task(_until_drained(context.name, master))
    await context.idle(lambda: not draining.done())
    draining.cancel()
    with contextlib.suppress(asyncio.CancelledError, MooncakeError):  # without a master it cannot be
        await draining


async def _until_drained(name: str, master: Client) -> None:
    await master.call(DrainNode(name=name), Done, timeout_s=ASK_TIMEOUT_S)
    while True:
        answer = await master.call(QueryDrains(names=[name]), Drains, timeout_s=ASK_TIMEOUT_S)
        if not answer.drains or answer.drains[0].state != "draining":
            return
        await asyncio.sleep(DRAIN_POLL_S)


def _join(context: RoleContext, node: Node, address: HostPort) -> Join:
    return Join(
        name=context.name,
        role="store",
        host_id=context.host_id,
        incarnation=context.incarnation,
        control_address=address.url,
        pid=os.getpid(),
        local_to=context.spec.local_to,
        segment=node.offer(),
    )
