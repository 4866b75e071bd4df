"""Which nodes a put takes, and which objects make room for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import PoolObject


def in_order_of_choice(nodes: Iterable[NodeSpace], preferred: Sequence[str]) -> list[NodeSpace]:
    """Nodes as a put takes them: the preferred ones in their order, then those with the largest free share."""
    ranks = {name: rank for rank, name in reversed(list(enumerate(preferred)))}
    return sorted(
        (node for node in nodes if node.accepts),
        key=lambda node: (ranks.get(node.name, len(preferred)), -node.free_ratio(), node.name),
    )


def victims(node: NodeSpace, index: ObjectIndex, now: float) -> Iterator[PoolObject]:
    """What a node evicts, in the order of its policy; the caller drops each one before it asks for the next.

    A block whose chain goes on is passed over, and its turn comes as soon as the last block after it has gone.
    """
    passed: set[str] = set()
    for key in node.eviction.candidates():
        passed.add(key)
        while key in passed and index.may_go(key, node.name, now):
            entry = index.readable(key)
            assert entry is not None  # it may go
            yield entry
            key = entry.parent
