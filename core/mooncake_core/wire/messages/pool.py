"""The pool: two-phase put, reads under lease, removal; and what the master asks of a node.

Times cross the wire as durations. A lease or a writer's deadline counts on the asker's monotonic clock from the moment
it *sent* the request, and on the master's from the moment it answered: the asker's ends first.
"""

from __future__ import annotations

from msgspec import Struct

from mooncake_core.wire.messages.memory import SegmentDescriptor


class NewObject(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An object somebody wants to put."""

    key: str
    size_bytes: int
    parent: str = ""
    """The object before this one in its chain (the previous block): eviction takes a chain's tail before its head."""
    group: str = ""
    """Objects of one group are evicted together, or not at all. Empty: none; for an upsert, that of the object replaced."""


class Placement(Struct, frozen=True, kw_only=True, gc=False):
    """Where one replica of an object lies, or is to be written: a slot and a range of a node's segment."""

    node: str
    incarnation: int
    slot: int
    offset: int
    """Of the object's header, from the start of the segment; its data follows the header."""


class Grant(Struct, frozen=True, kw_only=True, gc=False):
    """Space to write an object to. Without placements the object is to be skipped, and `refusal` says why (an error
    code: object_exists when it is there or being written, object_busy for an upsert of what is being written, no_space,
    quota_exceeded, invalid_request)."""

    key: str
    """As it is to stand in the object's header: see store/tenants.py."""
    allocation_id: int = 0
    placements: tuple[Placement, ...] = ()
    refusal: str = ""


class PutStart(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """Reserves space for objects. `preferred_node`, then each of `preferred_nodes`, gets a replica where it has room."""

    objects: list[NewObject]
    replicas: int = 1
    preferred_node: str = ""
    preferred_nodes: list[str] = []
    same_node: bool = False
    """After those: the nodes that the first of the objects, or others of its group, lie on."""
    upsert: bool = False
    """An object that exists is replaced when the new one is committed; until then readers see the old one."""
    hard_pin: bool | None = None
    """Never to be evicted. None: no; for an upsert, as the object replaced."""
    soft_pin_s: float | None = None
    """For so long evicted only where nothing else can go. None: not; for an upsert, as the object replaced."""
    tenant: str = "default"


class PutStarted(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One grant per object, in order; `segments` are the write descriptors of the nodes named in them."""

    term: int
    writer_deadline_s: float
    """End the put before this many seconds have passed; later its space is reclaimed, and its writer shut out."""
    grants: list[Grant]
    segments: dict[str, SegmentDescriptor]
    retry_after_s: float | None = None
    """Where space was refused (no_space): some that is on its way to being free may be so after this many seconds. None:
    none is on its way; only removals, or leases that end, will help."""


class Commit(Struct, frozen=True, kw_only=True, gc=False):
    """One object is written."""

    allocation_id: int
    checksum: int
    """0: there is none, the object was not written from its beginning to its end; it cannot be verified."""
    nodes: list[str]
    """Those of its placements that hold the data and the committed slot; the space of the others is given back."""


class PutEnd(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Makes objects readable, and gives back the space of those that could not be written."""

    term: int
    commits: list[Commit]
    revoked: list[int] = []
    """Allocation ids."""
    settled: list[str] = []
    """Nodes at which every write of this put is known to have ended. Space given back at the others is not used again before
    the writer's deadline has passed: a write may land until then."""


class PutEnded(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One error code per commit, empty for success (stale_allocation: not committed, the object is not there)."""

    refusals: list[str]


class Located(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A readable object under lease."""

    key: str
    allocation_id: int
    size_bytes: int
    header_bytes: int
    checksum: int
    placements: tuple[Placement, ...]
    tier: str = ""
    """Kind of the tier from which it was brought to DRAM for this; empty where it lay there."""


class Get(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """Where are these objects? Takes a lease on each that is found."""

    keys: list[str]
    lease: bool = True
    """False: a probe. No lease is taken or renewed, and the objects do not count as used: their bytes must not be trusted."""
    tenant: str = "default"


class Got(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One entry per key, None for a miss; `segments` are the read descriptors of the nodes named in them."""

    term: int
    lease_s: float
    objects: list[Located | None]
    segments: dict[str, SegmentDescriptor]
    held_s: float = 0.0
    """The leases began so much later than the question came: objects had to be brought from a tier."""


class Exists(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """Which of these keys can be read now? Renews no lease."""

    keys: list[str]
    tenant: str = "default"


class ExistsReply(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One answer per key."""

    present: list[bool]


class Remove(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Removes objects; with `force` also leased ones (their space is used again only after the lease)."""

    keys: list[str]
    force: bool = False
    tenant: str = "default"


class Removed(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One error code per key, empty for success (object_not_found, object_leased)."""

    refusals: list[str]


class RemoveAll(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Removes every object that is there now; with `force` also leased ones, and puts under way come to nothing. Of a large
    pool it goes slice by slice: what is put meanwhile stays."""

    force: bool = False
    tenant: str = "default"
    """Empty: of all tenants."""


class RemovedAll(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """How many went, and how many stayed because of a lease."""

    removed: int
    kept: int


# Master to node.


class Fence(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Withdraw the write descriptor that writers hold, and export a new one: a new term begins, or a writer is silent.

    Fences are ordered by (term, round). One that was already handled gets the same answer again.
    """

    term: int
    round: int


class Fenced(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Nobody who was told an earlier descriptor can write to the segment any more."""

    incarnation: int
    write: SegmentDescriptor


class StoredObject(Struct, frozen=True, kw_only=True, gc=False):
    """An object as the node's directory has it."""

    key: str
    parent: str
    allocation_id: int
    size_bytes: int
    checksum: int
    slot: int
    offset: int
    removed: bool = False
    """It is gone, and only its space is still in use: a reader may be there."""


class ReportBlocks(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Asks a fenced node for the next part of its directory, from slot `cursor` on."""

    term: int
    cursor: int = 0


class BlockReport(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Some thousand objects; `next_cursor` is -1 after the last part. Reservations of writers that were shut out are dropped."""

    incarnation: int
    objects: list[StoredObject]
    next_cursor: int


class SlotClearing(Struct, frozen=True, kw_only=True, gc=False):
    """A directory slot whose object is gone; cleared only if it still holds that allocation."""

    slot: int
    allocation_id: int
    only_mark: bool = False
    """Somebody may still touch its space: the slot goes on naming it, as that of a removed object."""


class ClearSlots(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The master dropped these objects; where they are not only marked, it uses their space again once the node has answered
    Done."""

    term: int
    incarnation: int
    slots: list[SlotClearing]
    order: int = 0
    """Counts the master's orders about the node's slots: an order to write there that is older than this one is refused."""
