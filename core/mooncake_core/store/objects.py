"""The pool's objects, what changes among them, and whether the books are right. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from mooncake_core.store.node_space import Extent, NodeSpace
from mooncake_core.wire.messages.inspection import CacheEntry

NOTHING: Final[Mapping[str, Extent]] = MappingProxyType({})
"""Shared by all objects that have nothing there: there are many of them."""


@dataclass(slots=True)
class PoolObject:
    """An object that is there, or being written."""

    key: str
    parent: str
    size_bytes: int
    allocation_id: int
    replicas: dict[str, Extent]
    """Node → where in its DRAM."""
    checksum: int = 0
    readable: bool = False
    doomed: bool = False
    """All objects were removed while it was being written: it will not be committed."""
    write_until: float = 0.0
    """Its writer's deadline."""
    lease_until: float = 0.0
    used_at: float = 0.0
    leaving: Mapping[str, Extent] = field(default_factory=lambda: NOTHING)
    """Node → where in its DRAM, of places that are given up when the node has copied the object to its tiers."""
    tiered: tuple[str, ...] = ()
    """Nodes that have it in a tier."""
    came_from: str = ""
    """Kind of the tier it was brought from, until it is read."""

    @property
    def is_nowhere(self) -> bool:
        return not (self.replicas or self.leaving or self.tiered)

    def is_on(self, node: str) -> bool:
        """Whether a node has it in DRAM or in a tier."""
        return node in self.replicas or node in self.leaving or node in self.tiered

    def describe(self, now: float) -> CacheEntry:
        """For people."""
        return CacheEntry(
            key=self.key,
            size_bytes=self.size_bytes,
            nodes=list(self.replicas),
            leased=self.lease_until > now,
            idle_s=now - self.used_at,
            tiered_on=list(self.tiered),
        )


@dataclass(slots=True)
class Counters:
    """Since the master's start."""

    puts: int = 0
    skipped_puts: int = 0
    refused_puts: int = 0
    hits: int = 0
    misses: int = 0
    evicted: int = 0
    demoted: int = 0
    hit_bytes: int = 0
    tier_hits: dict[str, int] = field(default_factory=dict)
    """Of the hits those that had to be brought from a tier; by its kind."""
    tier_hit_bytes: dict[str, int] = field(default_factory=dict)

    def came(self, tier: str, num_bytes: int) -> None:
        """A hit is of an object that lay in a tier when it was asked for."""
        self.tier_hits[tier] = self.tier_hits.get(tier, 0) + 1
        self.tier_hit_bytes[tier] = self.tier_hit_bytes.get(tier, 0) + num_bytes

    def hits_by_tier(self) -> dict[str, int]:
        """DRAM's among them."""
        return {"dram": self.hits - sum(self.tier_hits.values()), **self.tier_hits}

    def hit_bytes_by_tier(self) -> dict[str, int]:
        return {"dram": self.hit_bytes - sum(self.tier_hit_bytes.values()), **self.tier_hit_bytes}


@dataclass(slots=True)
class Changes:
    """What a single event changed, for the Conductor's index: node → keys."""

    stored: dict[str, list[str]] = field(default_factory=dict)
    removed: dict[str, list[str]] = field(default_factory=dict)


def check(
    nodes: Mapping[str, NodeSpace],
    objects: Sequence[PoolObject],
    writing: set[int],
    children: Mapping[str, int],
    arriving: Set[int] = frozenset(),
) -> list[str]:
    """What does not add up; empty when every byte and slot is accounted for exactly once. `arriving`: allocation ids that
    have space which is not their object's yet."""
    owners = {entry.allocation_id for entry in objects} | arriving
    problems = [problem for node in nodes.values() for problem in node.check(owners.__contains__)]
    for entry in objects:
        problems += _check_object(entry, nodes, writing)
    counted: dict[str, int] = {}
    for entry in objects:
        if entry.readable and entry.parent and entry.replicas:
            counted[entry.parent] = counted.get(entry.parent, 0) + 1
    return problems if counted == children else [*problems, "the count of children is wrong"]


def _check_object(entry: PoolObject, nodes: Mapping[str, NodeSpace], writing: set[int]) -> Iterator[str]:
    if entry.readable == (entry.allocation_id in writing):
        yield f"{entry.key} is neither being written nor readable, or both"
    for name, extent in (*entry.replicas.items(), *entry.leaving.items()):
        node = nodes.get(name)
        if node is None or node.taken.get(extent.slot) != extent:
            yield f"{entry.key}: its replica on {name} is not that node's"
