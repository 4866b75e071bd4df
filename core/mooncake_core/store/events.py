"""What the pool is told, and what it wants done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mooncake_core.errors import MooncakeError
from mooncake_core.store.tier_events import ObjectsLoaded, TierAnswered, TierCommand
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.objects import (
    Describe,
    ListKeys,
    ListTenants,
    Pin,
    RemoveMatching,
    RemoveReplicas,
    SetQuota,
)
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
from mooncake_core.wire.messages.tasks import OperatorQuestion, Pull
from mooncake_core.wire.messages.tiering import DRAM, Prefetch, Tier

QuestionAboutObjects = Describe | ListKeys | Pin | SetQuota | ListTenants
Question = (
    PutStart
    | PutEnd
    | Get
    | Exists
    | Prefetch
    | Remove
    | RemoveAll
    | RemoveMatching
    | RemoveReplicas
    | QuestionAboutObjects
    | OperatorQuestion
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A client asks; answered with Answer of the same token, at once or later."""

    token: int
    message: Question


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
class ObjectsPulled:
    """A node has copied objects to itself, or could not: pull id → error code, empty for success."""

    name: str
    incarnation: int
    refusals: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class NodeMarked:
    """A node remembers whether it drains."""

    name: str
    incarnation: int
    draining: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Asked
    | NodeJoined
    | NodeFenced
    | BlocksReported
    | SlotsCleared
    | NodeLeft
    | ObjectsPulled
    | NodeMarked
    | TierAnswered
    | Tick
)


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
    """A node has these objects now, or has them in another tier than before."""

    node: str
    keys: Sequence[str]
    tier: Tier = DRAM
    """Where its fastest copy lies."""


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """A node has these objects no more, in none of its tiers."""

    node: str
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class EvictionStalled:
    """Tell people: objects take more of a node than they should, and none may go."""

    node: str
    live_bytes: int
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class EvictionGoesOn:
    """Tell people: a node has room again, or can make some."""

    node: str


@dataclass(frozen=True, slots=True)
class PullToNode:
    """Ask a node to copy objects to itself. `round` is that of its newest fence."""

    name: str
    incarnation: int
    round: int
    source: SegmentDescriptor
    pulls: Sequence[Pull]


@dataclass(frozen=True, slots=True)
class MarkNode:
    """Have a node remember whether it drains."""

    name: str
    incarnation: int
    draining: bool


ToNode = FenceNode | AskReport | ClearNodeSlots | PullToNode | MarkNode | TierCommand
Command = Answer | ToNode | BlocksStored | BlocksRemoved | ObjectsLoaded | EvictionStalled | EvictionGoesOn
