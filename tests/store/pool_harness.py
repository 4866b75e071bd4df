"""A pool, models of its nodes, and a driver that can lose what nodes answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from mooncake_core.store import events as p
from mooncake_core.store.eviction import Eviction
from mooncake_core.store.evictions import LRU
from mooncake_core.store.layout import SLOT_BYTES
from mooncake_core.store.pool import Pool
from mooncake_core.store.pool_settings import PoolSettings
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.objects import Describe, Described, ObjectDescription, Pin, Pinned
from mooncake_core.wire.messages.pool import (
    BlockReport,
    Commit,
    Exists,
    ExistsReply,
    Get,
    Got,
    Grant,
    NewObject,
    PutEnd,
    PutEnded,
    PutStart,
    PutStarted,
    SlotClearing,
    StoredObject,
)
from mooncake_core.wire.messages.tasks import Pull
from mooncake_core.wire.messages.tiering import Tier

NODES = ["a", "b", "c"]
KEYS = [f"k{number}" for number in range(12)]
SETTINGS = PoolSettings(read_lease_s=5, writer_deadline_s=10, high_watermark=0.8, low_watermark=0.5)


EXPORTS = itertools.count()
LATE_S = 0.9
"""How much later than they should readers and writers may end: less than the pool's margin."""


def descriptor(name: str, incarnation: int) -> SegmentDescriptor:
    """A new export each time."""
    paths = {"path": str(next(EXPORTS)).encode()}
    return SegmentDescriptor(owner=name, host_id="h", incarnation=incarnation, length_bytes=1, paths=paths)


@dataclass
class NodeModel:
    """A node's directory and its write export, as the node itself has them."""

    name: str
    incarnation: int
    capacity: int = 64 * 60
    num_slots: int = 12
    slots: dict[int, StoredObject] = field(default_factory=dict)
    fence: tuple[int, int] = (0, 0)
    last_clearing: int = 0
    draining: bool = False

    def __post_init__(self) -> None:
        self.read = descriptor(self.name, self.incarnation)
        self.write = descriptor(self.name, self.incarnation)

    def offer(self) -> SegmentOffer:
        return SegmentOffer(
            capacity_bytes=self.capacity,
            data_offset=SLOT_BYTES * 64,
            num_slots=self.num_slots,
            slot_bytes=SLOT_BYTES,
            draining=self.draining,
            read=self.read,
            write=self.write,
        )

    def shut_out(self, fence: tuple[int, int]) -> None:
        if fence > self.fence:
            self.fence, self.write = fence, descriptor(self.name, self.incarnation)

    def report(self, cursor: int) -> BlockReport:
        part = [self.slots[slot] for slot in sorted(self.slots) if cursor <= slot < cursor + 5]
        done = cursor + 5 >= self.num_slots
        return BlockReport(incarnation=self.incarnation, objects=part, next_cursor=-1 if done else cursor + 5)

    def clear(self, clearings: Sequence[SlotClearing], order: int) -> None:
        self.last_clearing = order
        for clearing in clearings:
            stored = self.slots.get(clearing.slot)
            if stored is None or stored.allocation_id != clearing.allocation_id:
                continue
            if clearing.only_mark:
                self.slots[clearing.slot] = structs.replace(stored, removed=True)
            else:
                del self.slots[clearing.slot]


class Harness:
    """A pool, its nodes, and a driver that can lose what nodes answer."""

    def __init__(self, settings_: PoolSettings = SETTINGS, policy: type[Eviction] = LRU) -> None:
        self.settings = settings_
        self.policy = policy
        self.now = 100.0
        self.nodes: dict[str, NodeModel] = {}
        self.incarnations = itertools.count(1)
        self.tokens = itertools.count()
        self.terms = itertools.count(1)
        self.ids = itertools.count(1)
        self.index: dict[str, dict[str, Tier]] = {}
        """Node → key → where its fastest copy lies, as the Conductor hears of it."""
        self.unanswered: list[p.Event] = []
        self.orders = itertools.count(1)
        self.pulls: list[tuple[int, int, p.PullToNode]] = []
        """(term, order, what) that nodes were asked to copy, and have not begun."""
        self.exports: dict[int, dict[str, SegmentDescriptor]] = {}
        """Allocation → what its writer was told to write through."""
        self.restart()

    def restart(self) -> None:
        """A new master of a higher term, that knows nothing."""
        self.term = next(self.terms)
        self.pool = Pool(self.settings, term=self.term, next_id=lambda: next(self.ids), eviction=self.policy)
        self.index = {}
        self.unanswered.clear()
        for node in self.nodes.values():
            self.feed(p.NodeJoined(node.name, node.incarnation, node.offer()))

    def feed(self, event: p.Event) -> list[p.Command]:
        commands = self.pool.handle(event, self.now)
        for command in commands:
            self.execute(command)
        return commands

    def execute(self, command: p.Command) -> None:
        match command:
            case p.FenceNode(name, incarnation, round_):
                node = self.nodes.get(name)
                if node is not None and node.incarnation == incarnation:
                    node.shut_out((self.term, round_))
                    self.unanswered.append(p.NodeFenced(name, incarnation, round_, node.write))
            case p.AskReport(name=name, cursor=cursor):
                if name in self.nodes:
                    self.unanswered.append(p.BlocksReported(command, self.nodes[name].report(cursor)))
            case p.ClearNodeSlots(name, incarnation, slots):
                node = self.nodes.get(name)
                if node is not None and node.incarnation == incarnation:
                    node.clear(slots, next(self.orders))
                    self.unanswered.append(p.SlotsCleared(name, incarnation, slots))
            case p.PullToNode():
                self.pulls.append((self.term, next(self.orders), command))
            case p.MarkNode(name, incarnation, draining):
                node = self.nodes.get(name)
                if node is not None and node.incarnation == incarnation:
                    node.draining = draining
                    self.unanswered.append(p.NodeMarked(name, incarnation, draining))
            case p.BlocksStored(node_name, keys, tier):
                held = self.index.setdefault(node_name, {})
                assert all(held.get(key) != tier for key in keys)
                held.update(dict.fromkeys(keys, tier))
            case p.BlocksRemoved(node_name, keys):
                for key in keys:
                    del self.index[node_name][key]

    def ask(self, message: object) -> object:
        token = next(self.tokens)
        for command in self.feed(p.Asked(token, message)):  # type: ignore[arg-type]
            if isinstance(command, p.Answer) and command.token == token:
                return command.message
        raise AssertionError("no answer")

    def answer_all(self) -> None:
        while self.unanswered:
            self.feed(self.unanswered.pop(0))

    def pull(self, number: int = 0, refusal: str = "", *, lost: bool = False) -> None:
        """A node does what it was asked to copy, or cannot; its answer may be lost."""
        term, order, wanted = self.pulls.pop(number)
        node = self.nodes.get(wanted.name)
        if node is None or node.incarnation != wanted.incarnation:
            return
        overtaken = (term, wanted.round) != node.fence or order < node.last_clearing
        code = "stale_allocation" if overtaken else refusal
        refusals = {pull.pull_id: code or self._copy(node, wanted.source, pull) for pull in wanted.pulls}
        if not lost and term == self.term:
            self.unanswered.append(p.ObjectsPulled(wanted.name, wanted.incarnation, refusals))

    def _copy(self, node: NodeModel, source: SegmentDescriptor, pull: Pull) -> str:
        there = self.nodes.get(source.owner)
        if there is None or there.incarnation != source.incarnation:
            return "path_failed"
        found = next((stored for stored in there.slots.values() if stored.offset == pull.source_offset), None)
        if found is None or (found.allocation_id, found.key) != (pull.allocation_id, pull.key):
            return "object_not_found"
        other = node.slots.get(pull.slot)
        assert other is None or other.allocation_id == pull.allocation_id, "it was somebody else's slot"
        node.slots[pull.slot] = structs.replace(found, slot=pull.slot, offset=pull.offset, removed=False)
        return ""

    def join(self, name: str) -> None:
        node = NodeModel(name, next(self.incarnations))
        self.nodes[name] = node
        self.feed(p.NodeJoined(name, node.incarnation, node.offer()))

    def settle(self) -> None:
        """Answers everything and lets all deadlines pass."""
        for _ in range(4):
            self.answer_all()
            self.now += 60
            self.feed(p.Tick())
        self.answer_all()

    def put(
        self,
        key: str,
        size: int = 64,
        parent: str = "",
        replicas: int = 1,
        preferred: str = "",
        group: str = "",
        **options: Any,
    ) -> Grant:
        """`options` are fields of the message PutStart."""
        wanted = [NewObject(key=key, size_bytes=size, parent=parent, group=group)]
        started = self.ask(PutStart(objects=wanted, replicas=replicas, preferred_node=preferred, **options))
        assert isinstance(started, PutStarted), started
        (grant,) = started.grants
        self.exports[grant.allocation_id] = started.segments
        return grant

    def can_write(self, grant: Grant, name: str) -> bool:
        """Whether a writer is not shut out of a node."""
        node = self.nodes.get(name)
        return node is not None and node.write == self.exports[grant.allocation_id][name]

    def write(self, grant: Grant, size: int = 64, parent: str = "", nodes: Sequence[str] = NODES) -> None:
        """What the client writes to some of the nodes, one-sided."""
        for placement in grant.placements:
            if placement.node not in nodes or not self.can_write(grant, placement.node):
                continue
            node = self.nodes[placement.node]
            other = node.slots.get(placement.slot)
            assert other is None or other.allocation_id == grant.allocation_id, "it was somebody else's slot"
            node.slots[placement.slot] = StoredObject(
                key=grant.key,
                parent=parent,
                allocation_id=grant.allocation_id,
                size_bytes=size,
                checksum=grant.allocation_id,
                slot=placement.slot,
                offset=placement.offset,
            )

    def end(
        self,
        grant: Grant,
        *,
        revoke: bool = False,
        term: int | None = None,
        nodes: Sequence[str] | None = None,
        settled: Sequence[str] | None = None,
    ) -> str:
        """By default the object is on all its nodes, and all writes have ended."""
        granted = [placement.node for placement in grant.placements]
        commit = Commit(
            allocation_id=grant.allocation_id,
            checksum=grant.allocation_id,
            nodes=list(granted if nodes is None else nodes),
        )
        message = PutEnd(
            term=self.term if term is None else term,
            commits=[] if revoke else [commit],
            revoked=[grant.allocation_id] if revoke else [],
            settled=list(granted if settled is None else settled),
        )
        ended = self.ask(message)
        assert isinstance(ended, PutEnded)
        return "" if revoke else ended.refusals[0]

    def store(self, key: str, size: int = 64, parent: str = "", **options: Any) -> Grant:
        grant = self.put(key, size, parent, **options)
        assert grant.placements, grant.refusal
        self.write(grant, size, parent)
        assert self.end(grant) == ""
        return grant

    def exists(self, *keys: str) -> list[bool]:
        reply = self.ask(Exists(keys=list(keys)))
        assert isinstance(reply, ExistsReply)
        return reply.present

    def describe(self, key: str, tenant: str = "default") -> ObjectDescription | None:
        described = self.ask(Describe(keys=[key], tenant=tenant))
        assert isinstance(described, Described)
        return described.objects[0]

    def pin(self, *keys: str, hard: bool = False, soft_s: float = 0.0) -> list[str]:
        pinned = self.ask(Pin(keys=list(keys), hard=hard, soft_s=soft_s))
        assert isinstance(pinned, Pinned)
        return pinned.refusals

    def get(self, *keys: str) -> Got:
        got = self.ask(Get(keys=list(keys)))
        assert isinstance(got, Got)
        return got
