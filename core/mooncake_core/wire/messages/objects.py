"""The pool's objects looked at and looked after: descriptions, listings, removal by pattern, pins, tenants."""

from __future__ import annotations

from msgspec import Struct

from mooncake_core.wire.messages.pool import Placement


class Describe(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """What is known of these objects? Takes no lease, and does not count as a use."""

    keys: list[str]
    tenant: str = "default"


class ObjectDescription(Struct, frozen=True, kw_only=True, gc=False):
    """One object that can be read."""

    key: str
    tenant: str
    size_bytes: int
    checksum: int
    header_bytes: int
    replicas: tuple[Placement, ...]
    parent: str
    group: str
    lease_s: float
    """How long a reader's lease still covers it, the master's margin included; 0 without one."""
    idle_s: float
    hard_pinned: bool
    soft_pin_s: float
    """How long its soft pin still holds; 0 without one."""
    being_replaced: bool
    """An upsert of it is under way."""
    tiered_on: list[str] = []
    """Nodes that hold it in a tier."""


class Described(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One entry per key, None for what cannot be read."""

    objects: list[ObjectDescription | None]


class ListKeys(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """Which keys are there, that begin with `prefix` and in which the regular expression `pattern` (RE2) is found?

    Names each object that is there from the first page to the last exactly once.
    """

    prefix: str = ""
    pattern: str = ""
    limit: int = 1000
    cursor: int = 0
    """0 begins; then that of the page before."""
    tenant: str = "default"


class KeyList(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """A page. It may be short, or empty, before the last one; `cursor` is 0 after that."""

    keys: list[str]
    cursor: int


class RemoveMatching(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """Removes the objects in whose keys the regular expression (RE2) is found, slice by slice; answered with RemovedAll."""

    pattern: str
    force: bool = False
    """Also leased ones."""
    tenant: str = "default"


class RemoveReplicas(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """Removes what a node has of these objects, in its DRAM and its tiers; an object that lies nowhere else goes. Answered with
    Removed (object_not_found: also where the node has nothing of it; object_leased: also while it is copied)."""

    keys: list[str]
    node: str
    tenant: str = "default"


class Pin(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """From now on these objects are pinned like this, and no other way; without a pin they may be evicted again."""

    keys: list[str]
    hard: bool = False
    """Never evicted."""
    soft_s: float = 0.0
    """For so long evicted only where nothing else can go."""
    tenant: str = "default"


class Pinned(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One error code per key, empty for success (object_not_found)."""

    refusals: list[str]


class SetQuota(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """From now on, until the master ends, the tenant may hold so many bytes; None for any number. A new tenant is made."""

    tenant: str
    quota_bytes: int | None


class ListTenants(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Who has how much?"""


class TenantUsage(Struct, frozen=True, kw_only=True, gc=False):
    """A tenant's part of the pool. Bytes are those of its objects on all their nodes, those being written included."""

    tenant: str
    quota_bytes: int | None
    used_bytes: int
    num_objects: int
    hits: int = 0
    """Keys that its reads found, since the master's start."""
    hit_bytes: int = 0
    misses: int = 0

    @property
    def hit_ratio(self) -> float:
        """Of the keys that its reads asked for."""
        return self.hits / max(1, self.hits + self.misses)


class TenantList(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The default tenant first."""

    tenants: list[TenantUsage]
