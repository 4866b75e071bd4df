"""What the pool is told, and what it wants done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mooncake_core.errors import MooncakeError
from mooncake_core.store.tier_events import TierAnswered, TierCommand
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import (
    BlockReport,
    Exists,
    Get,
    PutEnd,
    PutStart,
    Remove,
    RemoveAll,
    SlotClearing,
)
from mooncake_core.wire.messages.tiering import Prefetch


@dataclass(frozen=True, slots=True)
class Asked:
    """A client asks; answered with Answer of the same token."""

    token: int
    message: PutStart | PutEnd | Get | Exists | Remove | RemoveAll | Prefetch


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node contributes a segment."""

    name: str
    incarnation: int
    offer: SegmentOffer


@dataclass(frozen=True, slots=True)
class NodeFenced:
    """Writers of earlier rounds are shut out of a node."""

    name: str
    incarnation: int
    round: int
    write: SegmentDescriptor


@dataclass(frozen=True, slots=True)
class BlocksReported:
    """Part of a node's directory, and what it answers."""

    asked: AskReport
    report: BlockReport


@dataclass(frozen=True, slots=True)
class SlotsCleared:
    """A node has cleared slots."""

    name: str
    incarnation: int
    slots: Sequence[SlotClearing]


@dataclass(frozen=True, slots=True)
class NodeLeft:
    """A node is gone with all it had."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Asked | NodeJoined | NodeFenced | BlocksReported | SlotsCleared | NodeLeft | TierAnswered | Tick


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell whoever asked."""

    token: int
    message: Message | MooncakeError


@dataclass(frozen=True, slots=True)
class FenceNode:
    """Ask a node to shut out the writers of earlier rounds."""

    name: str
    incarnation: int
    round: int


@dataclass(frozen=True, slots=True)
class AskReport:
    """Ask a node for the next part of its directory."""

    name: str
    incarnation: int
    round: int
    cursor: int


@dataclass(frozen=True, slots=True)
class ClearNodeSlots:
    """Ask a node to clear slots."""

    name: str
    incarnation: int
    slots: Sequence[SlotClearing]


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """A node has these objects now."""

    node: str
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """A node has these objects no more."""

    node: str
    keys: Sequence[str]


Command = Answer | FenceNode | AskReport | ClearNodeSlots | BlocksStored | BlocksRemoved | TierCommand
