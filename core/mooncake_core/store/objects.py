"""The pool's objects, what changes among them, and whether the books are right. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from mooncake_core.store.node_space import Extent, NodeSpace
from mooncake_core.store.replicas import Replicas
from mooncake_core.store.tenants import Account, split
from mooncake_core.wire.messages.inspection import CacheEntry
from mooncake_core.wire.messages.tiering import DRAM, LOWER, Tier

NOTHING: Final[Mapping[str, Extent]] = MappingProxyType({})
"""Shared by all objects that have nothing there: there are many of them."""


class PoolObject(Struct, gc=False):
    """An object that is there, or being written. Nothing that it names leads back to it, so it can be no part of a cycle; and
    the garbage collector does not stop the master to look at a million of them."""

    key: str
    parent: str
    size_bytes: int
    allocation_id: int
    replicas: Replicas
    """Node → where in its DRAM."""
    account: Account
    """Its tenant's."""
    group: str = ""
    """As it is named among all tenants' groups."""
    pin_until: float = 0.0
    """See pins.py."""
    checksum: int = 0
    readable: bool = False
    doomed: bool = False
    """All objects were removed while it was being written: it will not be committed."""
    write_until: float = 0.0
    """Its writer's deadline."""
    lease_until: float = 0.0
    used_at: float = 0.0
    position: int = 0
    """How many objects of its chain come before it, as far as they were known."""
    copies_under_way: int = 0
    """Nodes that are copying it: so long it is not evicted."""
    leaving: Mapping[str, Extent] = NOTHING
    """Node → where in its DRAM, of places that are given up when the node has copied the object to its tiers."""
    tiered: tuple[str, ...] = ()
    """Nodes that have it in a tier."""
    came_from: str = ""
    """Kind of the tier it was brought from, until it is read."""

    @property
    def extent_bytes(self) -> int:
        """In the DRAM of all its nodes."""
        return self.replicas.num_bytes + sum(extent.length for extent in self.leaving.values())

    @property
    def is_nowhere(self) -> bool:
        return not (self.replicas or self.leaving or self.tiered)

    def is_used(self, now: float) -> bool:
        """Somebody reads it, or copies it."""
        return self.lease_until > now or self.copies_under_way > 0

    def tier_on(self, node: str) -> Tier | None:
        """Where a node's fastest copy lies; None: it has none. What leaves DRAM is there until it has left: who asks for it
        meanwhile gets it from there."""
        if node in self.replicas or node in self.leaving:
            return DRAM
        return LOWER if node in self.tiered else None

    def describe(self, now: float) -> CacheEntry:
        """For people."""
        return CacheEntry(
            key=split(self.key)[1],
            size_bytes=self.size_bytes,
            nodes=list(self.replicas),
            leased=self.lease_until > now,
            idle_s=now - self.used_at,
            tenant=self.account.tenant,
            pinned=self.pin_until > now,
            tiered_on=list(self.tiered),
        )


@dataclass(slots=True)
class Counters:
    """Since the master's start."""

    puts: int = 0
    put_bytes: int = 0
    skipped_puts: int = 0
    refused_puts: int = 0
    """For want of space."""
    refused_by_quota: int = 0
    hits: int = 0
    hit_bytes: int = 0
    misses: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    eviction_rounds: int = 0
    stalled_rounds: int = 0
    demoted: int = 0
    tier_hits: dict[str, int] = field(default_factory=dict)
    """Of the hits those that had to be brought from a tier; by its kind."""
    tier_hit_bytes: dict[str, int] = field(default_factory=dict)

    def came(self, tier: str, num_bytes: int) -> None:
        """A hit is of an object that lay in a tier when it was asked for."""
        self.tier_hits[tier] = self.tier_hits.get(tier, 0) + 1
        self.tier_hit_bytes[tier] = self.tier_hit_bytes.get(tier, 0) + num_bytes

    def hits_by_tier(self) -> dict[str, int]:
        """DRAM's among them."""
        return {DRAM: self.hits - sum(self.tier_hits.values()), **self.tier_hits}

    def hit_bytes_by_tier(self) -> dict[str, int]:
        return {DRAM: self.hit_bytes - sum(self.tier_hit_bytes.values()), **self.tier_hit_bytes}


@dataclass(slots=True)
class Changes:
    """What a single event changed, for the Conductor's index."""

    moves: dict[str, dict[str, tuple[Tier | None, Tier | None]]] = field(default_factory=dict)
    """Node → key → where the node had it before the event, and where it has it now."""

    def note(self, node: str, key: str, before: Tier | None, after: Tier | None) -> None:
        """A node has an object elsewhere than before. What comes and goes with one event has not moved."""
        keys = self.moves.setdefault(node, {})
        first = keys[key][0] if key in keys else before
        if first == after:
            keys.pop(key, None)
        else:
            keys[key] = (first, after)

    def by_tier(self) -> Iterator[tuple[str, Tier | None, list[str]]]:
        """Node, where it has them now, and keys: first what it has no more."""
        for tier in (None, DRAM, LOWER):
            for node, keys in self.moves.items():
                if found := [key for key, (_, after) in keys.items() if after == tier]:
                    yield node, tier, found


def check(
    nodes: Mapping[str, NodeSpace],
    objects: Sequence[PoolObject],
    writing: set[int],
    children: Mapping[str, int],
    accounts: Iterable[Account],
    arriving: Set[int],
) -> list[str]:
    """What does not add up; empty when every byte and slot is accounted for exactly once. `arriving`: allocation ids that
    have space which is not their object's yet."""
    owners = {entry.allocation_id for entry in objects} | arriving
    problems = [problem for node in nodes.values() for problem in node.check(owners.__contains__)]
    for entry in objects:
        problems += _check_object(entry, nodes, writing)
    problems += _check_accounts(objects, accounts)
    problems += _check_leaving(objects, nodes)
    counted: dict[str, int] = {}
    for entry in objects:
        if entry.readable and entry.parent and entry.replicas:
            counted[entry.parent] = counted.get(entry.parent, 0) + 1
    return problems if counted == children else [*problems, "the count of children is wrong"]


def _check_object(entry: PoolObject, nodes: Mapping[str, NodeSpace], writing: set[int]) -> Iterator[str]:
    if entry.readable == (entry.allocation_id in writing):
        yield f"{entry.key} is neither being written nor readable, or both"
    if entry.doomed and entry.readable:
        yield f"{entry.key} can be read though it is doomed"
    for name, extent in (*entry.replicas.items(), *entry.leaving.items()):
        node = nodes.get(name)
        if node is None or node.taken.get(extent.slot) != extent:
            yield f"{entry.key}: its replica on {name} is not that node's"


def _check_accounts(objects: Sequence[PoolObject], accounts: Iterable[Account]) -> Iterator[str]:
    held: dict[int, list[PoolObject]] = {}
    for entry in objects:
        held.setdefault(id(entry.account), []).append(entry)
    for account in accounts:
        entries = held.get(id(account), [])
        counted = (sum(entry.extent_bytes for entry in entries), sum(entry.readable for entry in entries))
        if counted != (account.used_bytes, account.num_objects):
            yield f"tenant {account.tenant} has {counted} bytes and objects, its account says otherwise"


def _check_leaving(objects: Sequence[PoolObject], nodes: Mapping[str, NodeSpace]) -> Iterator[str]:
    for name, node in nodes.items():
        if node.leaving_bytes != sum(entry.leaving[name].length for entry in objects if name in entry.leaving):
            yield f"{name}: the count of leaving bytes is wrong"
