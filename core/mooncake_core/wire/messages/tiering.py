"""What the master asks of a node that has tiers below its DRAM, and what a client asks to be brought up from them."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

DRAM: Final = "dram"
"""Among kinds of tiers: the node's memory."""
LOWER: Final = "lower"
"""Any tier below DRAM, where it does not matter of which kind."""
Tier = Literal["dram", "lower"]
"""Where the fastest copy lies that a node has."""


class TierFill(Struct, frozen=True, kw_only=True, gc=False):
    """One tier of a node, and how full it is."""

    kind: str
    capacity_bytes: int
    used_bytes: int = 0
    num_objects: int = 0
    trouble: str = ""
    """Why it takes no objects now; empty while it does."""


class TieredObject(Struct, frozen=True, kw_only=True, gc=False):
    """An object in a node's tiers."""

    key: str
    allocation_id: int
    size_bytes: int
    checksum: int
    parent: str = ""


class TieredName(Struct, frozen=True, kw_only=True, gc=False):
    """An object of one put."""

    key: str
    allocation_id: int


class SlotName(Struct, frozen=True, kw_only=True, gc=False):
    """A slot of the node's directory, and what is expected there."""

    slot: int
    allocation_id: int


class Demote(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Copy these objects from DRAM to the tiers. They stay in DRAM until the master has their slots cleared."""

    term: int
    incarnation: int
    slots: list[SlotName]


class Demoted(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """What of it the tiers hold now, and what they hold no more."""

    stored: list[TieredObject]
    dropped: list[TieredName]
    tiers: list[TierFill]


class Promotion(Struct, frozen=True, kw_only=True, gc=False):
    """An object, and the space in DRAM that it gets."""

    key: str
    allocation_id: int
    size_bytes: int
    checksum: int
    slot: int
    offset: int
    parent: str = ""


class Promote(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Copy these objects from the tiers to DRAM, and commit their slots. Repeating it does no harm."""

    term: int
    incarnation: int
    objects: list[Promotion]


class Promoted(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The tier that each object came from, in order; empty where none holds it whole and right."""

    tiers: list[str]


class ReportTiers(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Asks for the next part of what the tiers hold, from a cursor on."""

    term: int
    cursor: str = ""


class TierReport(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Some thousand objects; `next_cursor` is None after the last part."""

    incarnation: int
    objects: list[TieredObject]
    next_cursor: str | None
    tiers: list[TierFill]


class ForgetTiered(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """These objects were removed, or newer ones of their keys are known: the tiers drop them. Answered with Done."""

    term: int
    incarnation: int
    names: list[TieredName]


class Prefetch(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """These objects will be read soon: those that are only in a tier are brought to DRAM. Takes no lease."""

    keys: list[str]
    tenant: str = "default"


class Prefetching(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """How many are under way."""

    num_objects: int
