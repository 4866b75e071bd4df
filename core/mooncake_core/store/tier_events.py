"""What the pool wants of nodes with tiers, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.tiering import (
    Demoted,
    Promoted,
    Promotion,
    SlotName,
    TieredName,
    TierReport,
)


@dataclass(frozen=True, slots=True)
class DemoteObjects:
    """Ask a node to copy objects to its tiers."""

    name: str
    incarnation: int
    slots: Sequence[SlotName]


@dataclass(frozen=True, slots=True)
class PromoteObjects:
    """Ask a node to copy objects from its tiers to its DRAM."""

    name: str
    incarnation: int
    objects: Sequence[Promotion]


@dataclass(frozen=True, slots=True)
class AskTierReport:
    """Ask a node for the next part of what its tiers hold."""

    name: str
    incarnation: int
    cursor: str


@dataclass(frozen=True, slots=True)
class ForgetObjects:
    """Ask a node to drop objects from its tiers."""

    name: str
    incarnation: int
    names: Sequence[TieredName]


TierCommand = DemoteObjects | PromoteObjects | AskTierReport | ForgetObjects


@dataclass(frozen=True, slots=True)
class ObjectsLoaded:
    """Tell whoever predicts it: a node has brought up so many bytes from its tiers, without a pause."""

    node: str
    num_bytes: int
    took_s: float


@dataclass(frozen=True, slots=True)
class TierAnswered:
    """A node's answer; None: none came in time."""

    asked: TierCommand
    reply: Demoted | Promoted | TierReport | Done | None
