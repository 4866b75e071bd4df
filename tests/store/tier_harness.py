"""A pool whose nodes have tiers, and models of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import structs

from mooncake_core.store import events as p
from mooncake_core.store.tier_events import (
    AskTierReport,
    DemoteObjects,
    ForgetObjects,
    ObjectsLoaded,
    PromoteObjects,
    TierAnswered,
    TierCommand,
)
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.pool import Get, Got, StoredObject
from mooncake_core.wire.messages.tiering import (
    Demoted,
    Promoted,
    Promotion,
    SlotName,
    TieredName,
    TieredObject,
    TierReport,
)
from tests.store.pool_harness import Harness, NodeModel

PART = 3


@dataclass
class TieredNodeModel(NodeModel):
    """A node with room for a few objects in its tier."""

    tier: dict[str, TieredObject] = field(default_factory=dict)
    most_objects: int = 20
    write_through: bool = False
    refuses: bool = False

    def offer(self) -> SegmentOffer:
        return structs.replace(super().offer(), tiers=["lmdb"], write_through=self.write_through)

    def demote(self, slots: Sequence[SlotName]) -> Demoted:
        stored: list[TieredObject] = []
        dropped: list[TieredName] = []
        for name in slots:
            found = self.slots.get(name.slot)
            if self.refuses or found is None or found.allocation_id != name.allocation_id or found.removed:
                continue
            old = self.tier.pop(found.key, None)
            if old is not None and old.allocation_id > found.allocation_id:
                self.tier[found.key] = old
                continue
            self.tier[found.key] = tiered(found)
            stored.append(tiered(found))
            if len(self.tier) > self.most_objects:
                gone = self.tier.pop(next(iter(self.tier)))
                dropped.append(TieredName(key=gone.key, allocation_id=gone.allocation_id))
        return Demoted(stored=stored, dropped=dropped, tiers=[])

    def promote(self, objects: Sequence[Promotion]) -> Promoted:
        return Promoted(tiers=["lmdb" if self.bring(wanted) else "" for wanted in objects])

    def bring(self, wanted: Promotion) -> bool:
        found = self.tier.get(wanted.key)
        if found is None or found.allocation_id != wanted.allocation_id:
            return False
        other = self.slots.get(wanted.slot)
        assert other is None or other.allocation_id == wanted.allocation_id, "it was somebody else's slot"
        self.slots[wanted.slot] = StoredObject(
            key=found.key,
            parent=found.parent,
            allocation_id=found.allocation_id,
            size_bytes=found.size_bytes,
            checksum=found.checksum,
            slot=wanted.slot,
            offset=wanted.offset,
        )
        return True

    def report_tier(self, cursor: str) -> TierReport:
        keys = sorted(key for key in self.tier if key >= cursor)
        return TierReport(
            incarnation=self.incarnation,
            objects=[self.tier[key] for key in keys[:PART]],
            next_cursor=keys[PART] if len(keys) > PART else None,
            tiers=[],
        )

    def forget(self, names: Sequence[TieredName]) -> Done:
        for name in names:
            found = self.tier.get(name.key)
            if found is not None and found.allocation_id == name.allocation_id:
                del self.tier[name.key]
        return Done()


def tiered(found: StoredObject) -> TieredObject:
    return TieredObject(
        key=found.key,
        allocation_id=found.allocation_id,
        size_bytes=found.size_bytes,
        checksum=found.checksum,
        parent=found.parent,
    )


class TieredHarness(Harness):
    """Answers of gets may come later: see `answers`."""

    asked: list[TierCommand]
    loaded: list[ObjectsLoaded]
    answers: dict[int, Got]

    def restart(self) -> None:
        self.asked = []
        self.loaded = []
        self.answers = {}
        super().restart()

    def execute(self, command: p.Command) -> None:
        super().execute(command)
        match command:
            case p.Answer(token, Got() as got):
                self.answers[token] = got
            case ObjectsLoaded():
                self.loaded.append(command)
            case DemoteObjects() | PromoteObjects() | AskTierReport() | ForgetObjects():
                self.asked.append(command)
                self.unanswered.append(TierAnswered(command, self.reply(command)))

    def reply(self, asked: TierCommand) -> Demoted | Promoted | TierReport | Done | None:
        node = self.nodes.get(asked.name)
        if not isinstance(node, TieredNodeModel) or node.incarnation != asked.incarnation:
            return None
        match asked:
            case DemoteObjects(slots=slots):
                return node.demote(slots)
            case PromoteObjects(objects=objects):
                return node.promote(objects)
            case AskTierReport(cursor=cursor):
                return node.report_tier(cursor)
            case ForgetObjects(names=names):
                return node.forget(names)

    def join(self, name: str, **options: bool) -> None:
        before = self.nodes.get(name)
        node = TieredNodeModel(name, next(self.incarnations), **options)  # type: ignore[arg-type]
        if isinstance(before, TieredNodeModel):
            node.tier = before.tier  # its DRAM is gone, its tier is not
        self.nodes[name] = node
        self.feed(p.NodeJoined(name, node.incarnation, node.offer()))

    def leave(self, name: str) -> None:
        self.feed(p.NodeLeft(name, self.nodes[name].incarnation))

    def tier_of(self, name: str) -> dict[str, TieredObject]:
        node = self.nodes[name]
        assert isinstance(node, TieredNodeModel)
        return node.tier

    def begin_get(self, *keys: str) -> int:
        """The token under which the answer comes."""
        token = next(self.tokens)
        self.feed(p.Asked(token, Get(keys=list(keys))))
        return token

    def get(self, *keys: str) -> Got:
        """What is answered at once: nothing, where something has to be promoted first."""
        return self.answers.get(self.begin_get(*keys), Got(term=self.term, lease_s=0, objects=[], segments={}))

    def commands(self, kind: type) -> list[TierCommand]:
        """What was asked so far."""
        return [command for command in self.asked if isinstance(command, kind)]
