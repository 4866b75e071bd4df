"""The pool's figures as reports for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mooncake_core.store.node_space import NodeSpace
from mooncake_core.wire.messages.usage import NodeUsage


def node_usages(nodes: Iterable[NodeSpace]) -> list[NodeUsage]:
    """Each node's segment, by name."""
    return [
        NodeUsage(
            name=node.name,
            state=node.state.value,
            capacity_bytes=node.offer.capacity_bytes,
            used_bytes=node.used_bytes,
            quarantined_bytes=node.quarantined_bytes,
            num_objects=len(node.taken),
            hits=node.hits,
            hit_bytes=node.hit_bytes,
        )
        for node in sorted(nodes, key=lambda node: node.name)
    ]
