"""Which nodes a put takes. Pure.

A strategy (`pool.placement`) keeps the nodes in order, and costs O(log nodes) at most for each object that finds room at once.
"""

from __future__ import annotations

import heapq
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Final

from mooncake_core.store.node_chores import NodeChores
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.replicas import Replicas


class Order(ABC):
    """The nodes that take new objects, in a strategy's order. As long-lived as the pool."""

    def __init__(self, nodes: Mapping[str, NodeSpace], chores: NodeChores) -> None:
        """`chores` tells which of the nodes have got room."""
        self._nodes = nodes
        self._chores = chores

    @property
    def num_hosts(self) -> int:
        return len(self._chores.num_by_host)

    @abstractmethod
    def walk(self, host: str) -> Generator[NodeSpace, None, None]:
        """Each node once, as far as the caller goes, in the order for one object of whoever prefers this host (empty: none); it
        is closed before the next walk begins."""

    def _is_there(self, node: NodeSpace) -> bool:
        return self._nodes.get(node.name) is node and node.accepts


MOST_OUTDATED: Final = 4
"""Entries of a ranking per node: with more it is made anew."""


class _Ranking:
    """Nodes by their free share, the largest first. What a node has taken since it was ranked shows when its turn comes; that it
    has got room must be told."""

    def __init__(self, is_there: Callable[[NodeSpace], bool]) -> None:
        self._is_there = is_there
        self._heap: list[tuple[float, str, int, NodeSpace]] = []
        """The number only makes entries differ."""
        self._numbers = itertools.count()
        self._ranked: dict[NodeSpace, float] = {}
        """As it stands in the heap; what else stands there of a node is older, and means nothing."""

    def rank(self, node: NodeSpace) -> None:
        """By what it has free now."""
        ratio = node.free_ratio()
        if self._ranked.get(node) == ratio:
            return
        self._ranked[node] = ratio
        heapq.heappush(self._heap, self._entry(node, ratio))
        if len(self._heap) > MOST_OUTDATED * len(self._ranked):
            self._heap = [self._entry(each, known) for each, known in self._ranked.items()]
            heapq.heapify(self._heap)

    def walk(self) -> Generator[NodeSpace, None, None]:
        """Each node once; to be closed before anything else is ranked."""
        walked = []
        try:
            while self._heap:
                negative, _, _, node = heapq.heappop(self._heap)
                if self._ranked.get(node) != -negative:
                    continue
                del self._ranked[node]
                if not self._is_there(node):  # it is ranked anew when it is
                    continue
                if node.free_ratio() < -negative:
                    self.rank(node)
                    continue
                walked.append(node)
                yield node
        finally:
            for node in walked:
                self.rank(node)

    def _entry(self, node: NodeSpace, ratio: float) -> tuple[float, str, int, NodeSpace]:
        return -ratio, node.name, next(self._numbers), node


class FreeRatioFirst(Order):
    """Wherever there is most room."""

    def __init__(self, nodes: Mapping[str, NodeSpace], chores: NodeChores) -> None:
        super().__init__(nodes, chores)
        self._ranking = _Ranking(self._is_there)

    def walk(self, host: str) -> Generator[NodeSpace, None, None]:
        for node in self._chores.take_roomier():
            self._ranking.rank(node)
        return self._ranking.walk()


class LocalFirst(Order):
    """On the host of the preferred node while there is room, then wherever there is most."""

    def __init__(self, nodes: Mapping[str, NodeSpace], chores: NodeChores) -> None:
        super().__init__(nodes, chores)
        self._ranking = _Ranking(self._is_there)
        self._by_host: dict[str, _Ranking] = {}

    def walk(self, host: str) -> Generator[NodeSpace, None, None]:
        for node in self._chores.take_roomier():
            self._ranking.rank(node)
            self._by_host.setdefault(node.host, _Ranking(self._is_there)).rank(node)
        if len(self._by_host) > self.num_hosts:  # some have left
            for gone in self._by_host.keys() - self._chores.num_by_host.keys():
                del self._by_host[gone]
        return self._walk(host)

    def _walk(self, host: str) -> Generator[NodeSpace, None, None]:
        if host in self._by_host:
            yield from self._by_host[host].walk()
        for node in self._ranking.walk():
            if node.host != host:
                yield node


class AnyNode(Order):
    """Any node as likely as another."""

    def __init__(self, nodes: Mapping[str, NodeSpace], chores: NodeChores, rng: random.Random) -> None:
        super().__init__(nodes, chores)
        self._rng = rng
        self._known: list[NodeSpace] = []
        self._places: dict[NodeSpace, int] = {}

    def walk(self, host: str) -> Generator[NodeSpace, None, None]:
        for node in self._chores.take_roomier():
            if node not in self._places:
                self._places[node] = len(self._known)
                self._known.append(node)
        return self._walk()

    def _walk(self) -> Generator[NodeSpace, None, None]:
        drawn = 0
        while drawn < len(self._known):
            node = self._known[self._rng.randrange(drawn, len(self._known))]
            if self._is_there(node):
                self._swap(drawn, self._places[node])
                drawn += 1
                yield node
            else:  # it is told of when it is there again
                self._swap(self._places[node], len(self._known) - 1)
                del self._places[self._known.pop()]

    def _swap(self, one: int, other: int) -> None:
        known = self._known
        known[one], known[other] = known[other], known[one]
        self._places[known[one]], self._places[known[other]] = one, other


Strategy = Callable[[Mapping[str, NodeSpace], NodeChores], Order]
"""Makes the order of a pool's nodes."""


def strategy(name: str, rng: random.Random) -> Strategy:
    """By its name in the configuration; `rng` is all the randomness it has."""
    strategies: dict[str, Strategy] = {
        "free-ratio-first": FreeRatioFirst,
        "random": lambda nodes, chores: AnyNode(nodes, chores, rng),
        "local-first": LocalFirst,
    }
    return strategies[name]


class Placing:
    """Finds space for the objects of one put. Preferred nodes get the first replicas where they have room, and further ones
    lie on different nodes, of different hosts where there are."""

    def __init__(self, nodes: Mapping[str, NodeSpace], order: Order, preferred: Sequence[str]) -> None:
        """`preferred`: names of nodes, which may have gone."""
        self._nodes = nodes
        self._order = order
        self._preferred = list(preferred)
        self._near = next((nodes[name].host for name in preferred if name in nodes), "") if preferred else ""
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
        walk = self._order.walk(self._near)
        try:
            later = []
            for node in walk:
                if node.host not in hosts:
                    yield node
                else:
                    later.append(node)
                if len(hosts) == self._order.num_hosts:
                    break
            yield from later
            yield from walk
        finally:
            walk.close()
