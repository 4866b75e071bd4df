"""Which nodes a put takes. Pure.

A strategy (`pool.placement`) orders the nodes once for a whole put, and then costs O(log nodes) at most for each object that
finds room at once.
"""

from __future__ import annotations

import heapq
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.replicas import Replicas


class Order(ABC):
    """The nodes a put may take, in a strategy's order."""

    @abstractmethod
    def walk(self) -> Generator[NodeSpace, None, None]:
        """Each node once, as far as the caller goes, in the order for one object; it is closed before the next walk begins."""


class FreeRatioFirst(Order):
    """The node with the largest free share first."""

    def __init__(self, nodes: Sequence[NodeSpace], host: str = "") -> None:
        """The nodes of `host`, if there are any, before all others."""
        self._host = host
        self._heap = [self._ranked(node) for node in nodes]
        heapq.heapify(self._heap)

    def walk(self) -> Generator[NodeSpace, None, None]:
        walked = []
        try:
            while self._heap:
                node = heapq.heappop(self._heap)[-1]
                walked.append(node)
                yield node
        finally:
            for node in walked:
                heapq.heappush(self._heap, self._ranked(node))

    def _ranked(self, node: NodeSpace) -> tuple[bool, float, str, NodeSpace]:
        return node.host != self._host, -node.free_ratio(), node.name, node


class AnyNode(Order):
    """Any node as likely as another."""

    def __init__(self, nodes: Sequence[NodeSpace], rng: random.Random) -> None:
        self._nodes = list(nodes)
        self._rng = rng

    def walk(self) -> Generator[NodeSpace, None, None]:
        nodes = self._nodes
        for drawn in range(len(nodes)):
            chosen = self._rng.randrange(drawn, len(nodes))
            nodes[drawn], nodes[chosen] = nodes[chosen], nodes[drawn]
            yield nodes[drawn]


Strategy = Callable[[Sequence[NodeSpace], str], Order]
"""Makes the order of a put, from the nodes that take new objects, and the host of the preferred one (empty: none is)."""


def free_ratio_first(nodes: Sequence[NodeSpace], host: str) -> Order:
    """Wherever there is most room."""
    return FreeRatioFirst(nodes)


def local_first(nodes: Sequence[NodeSpace], host: str) -> Order:
    """On the host of the preferred node while there is room, then wherever there is most."""
    return FreeRatioFirst(nodes, host)


def strategy(name: str, rng: random.Random) -> Strategy:
    """By its name in the configuration; `rng` is all the randomness it has."""
    strategies: dict[str, Strategy] = {
        "free-ratio-first": free_ratio_first,
        "random": lambda nodes, host: AnyNode(nodes, rng),
        "local-first": local_first,
    }
    return strategies[name]


class Placing:
    """Finds space for the objects of one put. Preferred nodes get the first replicas where they have room, and further ones
    lie on different nodes, of different hosts where there are."""

    def __init__(self, nodes: Mapping[str, NodeSpace], strategy: Strategy, preferred: Sequence[str]) -> None:
        """`preferred`: names of nodes, which may have gone."""
        self._nodes = nodes
        self._strategy = strategy
        self._preferred = list(preferred)
        self._near = next((nodes[name].host for name in preferred if name in nodes), "") if preferred else ""
        self._order: Order | None = None
        self._num_hosts = 0
        """Of the nodes in that order."""
        self._too_long: int | None = None
        """No node has room for anything of this length: space is only taken while a put is placed."""
        self.wanting: dict[str, int] = {}
        """Node → bytes that it would have taken, were it not full."""

    def prefer(self, names: Iterable[str]) -> None:
        """For the objects to come, after those that are preferred already."""
        self._preferred += [name for name in names if name not in self._preferred]

    def place(self, length: int, allocation_id: int, num_replicas: int, also_preferred: Sequence[str] = ()) -> Replicas:
        """Node → its space; fewer replicas than asked for, or none, where there is no more room. `also_preferred`: for this
        object, after the others."""
        replicas = Replicas()
        if self._too_long is not None and length >= self._too_long:
            return replicas
        hosts: set[str] = set()
        nodes = self._spread(hosts, also_preferred)
        for node in nodes:
            extent = node.allocate(length, allocation_id) if node.name not in replicas else None
            if extent is not None:
                replicas[node.name] = extent
                if len(replicas) == num_replicas:
                    break
                hosts.add(node.host)
        nodes.close()
        if not replicas:
            self._too_long = length
        return replicas

    def note_refused(self, length: int, num_replicas: int) -> None:
        """An object found no room: adds to what nodes want."""
        noted: set[str] = set()
        nodes = self._spread(set())
        for node in nodes:
            if len(noted) == num_replicas:
                break
            wanted = self.wanting.get(node.name, 0) + length
            if node.name not in noted and wanted <= node.offer.capacity_bytes:
                self.wanting[node.name] = wanted
                noted.add(node.name)
        nodes.close()

    def _spread(self, hosts: set[str], also_preferred: Sequence[str] = ()) -> Generator[NodeSpace, None, None]:
        """The preferred nodes, then those of hosts that are not in `hosts`, then the others. To be closed before the next one
        begins."""
        for name in itertools.chain(self._preferred, also_preferred):
            if name in self._nodes and self._nodes[name].accepts:
                yield self._nodes[name]
        order = self._order
        if order is None:
            order = self._order = self._ordered()
        walk = order.walk()
        try:
            later = []
            for node in walk:
                if node.host not in hosts:
                    yield node
                else:
                    later.append(node)
                if len(hosts) == self._num_hosts:
                    break
            yield from later
            yield from walk
        finally:
            walk.close()

    def _ordered(self) -> Order:
        """Only when preferred nodes have no room: there may be many others."""
        accepting = [node for node in self._nodes.values() if node.accepts]
        self._num_hosts = len({node.host for node in accepting})
        return self._strategy(accepting, self._near)
