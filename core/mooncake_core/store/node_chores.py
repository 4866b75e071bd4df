"""Which nodes are to be asked something, are waited for, or have got room: so that what a question costs the master does not
grow with the number of nodes. Pure."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mooncake_core.store.node_space import NodeSpace


class NodeChores:
    """Kept by the nodes themselves, in the order in which things came up."""

    def __init__(self) -> None:
        self.unwritable: dict[NodeSpace, None] = {}
        """They join, or shut a writer out."""
        self.unconfirmed: dict[NodeSpace, None] = {}
        """They were asked to clear or mark slots, and have not answered."""
        self.num_by_host: dict[str, int] = {}
        """Nodes of each host."""
        self._roomier: dict[NodeSpace, None] = {}
        self._to_ask: dict[NodeSpace, None] = {}
        self._quarantines: list[tuple[float, int, NodeSpace]] = []
        """When the first one of a node ends, at the latest; the second number only makes them differ."""
        self._numbers = itertools.count()

    def joined(self, node: NodeSpace) -> None:
        """It is there; not to be written to yet."""
        self.unwritable[node] = None
        self.num_by_host[node.host] = self.num_by_host.get(node.host, 0) + 1

    def note_room(self, node: NodeSpace) -> None:
        """It takes more new objects than before."""
        self._roomier[node] = None

    def ask(self, node: NodeSpace) -> None:
        """It is to be asked to shut a writer out, or to clear or mark slots."""
        self._to_ask[node] = None

    def wait(self, node: NodeSpace, until: float) -> None:
        """It has a quarantine that ends then, and none that ends earlier."""
        heapq.heappush(self._quarantines, (until, next(self._numbers), node))

    def forget(self, node: NodeSpace) -> None:
        """It has left. What it waited for comes up once more, and means nothing then."""
        self.num_by_host[node.host] -= 1
        if not self.num_by_host[node.host]:
            del self.num_by_host[node.host]
        self._roomier.pop(node, None)
        self.unwritable.pop(node, None)
        self.unconfirmed.pop(node, None)
        self._to_ask.pop(node, None)

    def take_to_ask(self) -> list[NodeSpace]:
        """Those to be asked since the last call."""
        if not self._to_ask:  # mostly
            return []
        taken, self._to_ask = self._to_ask, {}
        return list(taken)

    def take_roomier(self) -> list[NodeSpace]:
        """Those that have got room since the last call."""
        if not self._roomier:  # mostly
            return []
        taken, self._roomier = self._roomier, {}
        return list(taken)

    def take_due(self, now: float) -> list[NodeSpace]:
        """Those of which a quarantine has ended."""
        due: list[NodeSpace] = []
        while self._quarantines and self._quarantines[0][0] <= now:
            due.append(heapq.heappop(self._quarantines)[-1])
        return due

    def next_quarantine(self) -> float | None:
        """When the first one ends, at the earliest."""
        return self._quarantines[0][0] if self._quarantines else None
