"""How a node is asked for what the pool wants of its tiers."""

from __future__ import annotations

from typing import Any

from mooncake_core.store.tier_events import (
    AskTierReport,
    DemoteObjects,
    ForgetObjects,
    PromoteObjects,
    TierCommand,
)
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.tiering import (
    Demote,
    Demoted,
    ForgetTiered,
    Promote,
    Promoted,
    ReportTiers,
    TierReport,
)


def tier_call(wanted: TierCommand, term: int) -> tuple[Message, type[Any]]:
    """The message, and the type of its answer."""
    match wanted:
        case DemoteObjects(incarnation=incarnation, slots=slots):
            return Demote(term=term, incarnation=incarnation, slots=list(slots)), Demoted
        case PromoteObjects(incarnation=incarnation, objects=objects):
            return Promote(term=term, incarnation=incarnation, objects=list(objects)), Promoted
        case AskTierReport(cursor=cursor):
            return ReportTiers(term=term, cursor=cursor), TierReport
        case ForgetObjects(incarnation=incarnation, names=names):
            return ForgetTiered(term=term, incarnation=incarnation, names=list(names)), Done
