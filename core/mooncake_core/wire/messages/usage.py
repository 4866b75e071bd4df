"""Parts of the pool's report: nodes, and prefixes that are read often."""

from __future__ import annotations

from msgspec import Struct


class NodeUsage(Struct, frozen=True, kw_only=True, gc=False):
    """One node's segment."""

    name: str
    state: str
    """fencing, reporting (its block report is under way), or ready."""
    capacity_bytes: int
    used_bytes: int
    """Those in quarantine included."""
    quarantined_bytes: int
    num_objects: int
    """Those being written included."""
    hits: int = 0
    """Keys found whose readers were sent here first, since it joined this master."""
    hit_bytes: int = 0


class HotPrefix(Struct, frozen=True, kw_only=True, gc=False):
    """A chain that is read often, named by the key of its first object. Old reads count less and less."""

    tenant: str
    head: str
    reads: int
    overcount: int
    """So many of the reads may be of other prefixes: the counters are bounded."""
    num_objects: int
    """Objects that these reads found."""
    size_bytes: int
