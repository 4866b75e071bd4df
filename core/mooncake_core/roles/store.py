"""The store role: a node that contributes a segment of DRAM to the pool."""

from __future__ import annotations

import os

from mooncake_core.address import HostPort
from mooncake_core.config.schema import NodeConfig
from mooncake_core.roles.context import RoleContext
from mooncake_core.store.node import Node
from mooncake_core.store.tiered_node import TieredNode
from mooncake_core.store.tiers.stack import open_tiers
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.member import Member
from mooncake_core.wire.messages.membership import Join
from mooncake_core.wire.server import Server


async def run(context: RoleContext) -> None:
    """Serves until told to stop."""
    section = context.spec.section
    host = context.spec.host
    assert isinstance(section, NodeConfig)  # what config.processes gives a store role
    engine = context.transfer_engine(host, section.data_port)
    node = _node(context, section, engine)
    server = Server(context.name, node.handlers(), key=context.key)
    try:
        address = await server.start(HostPort(host, 0))
        member = Member(
            context.clients.get(context.master_address),
            join=lambda: _join(context, node, address),
            load=lambda: None,
            on_joined=lambda joined: context.announce(address.url),
        )
        await context.serve(member)
    finally:
        await server.close()
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
        )
    return TieredNode(
        context.name,
        capacity_bytes=section.capacity,
        object_size_bytes=section.object_size,
        incarnation=context.incarnation,
        engine=engine,
        tiers=open_tiers(context.name, section.tiers),
    )


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
