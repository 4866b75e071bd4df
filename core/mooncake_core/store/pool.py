"""The master's side of the pool: who may write where, what can be read, what must go. Pure.

A put is two-phase: space is granted, then committed, and only committed objects can be read. A get takes a lease: what is
under lease is not evicted, and its space is not used again before the lease has ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import (
    InvalidRequest,
    MooncakeError,
    NoSpace,
    ObjectExists,
    ObjectLeased,
    ObjectNotFound,
    StaleAllocation,
)
from mooncake_core.store.events import (
    Answer,
    Asked,
    AskReport,
    BlocksRemoved,
    BlocksReported,
    BlocksStored,
    ClearNodeSlots,
    Command,
    Event,
    FenceNode,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    SlotsCleared,
    Tick,
)
from mooncake_core.store.eviction import Eviction
from mooncake_core.store.layout import extent_bytes, header_bytes
from mooncake_core.store.node_space import Extent, NodeSpace, NodeState
from mooncake_core.store.objects import Changes, Counters, PoolObject, check
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.inspection import CacheReport
from mooncake_core.wire.messages.pool import (
    BlockReport,
    Commit,
    Exists,
    ExistsReply,
    Get,
    Got,
    Grant,
    Located,
    NewObject,
    Placement,
    PutEnd,
    PutEnded,
    PutStart,
    PutStarted,
    Remove,
    RemoveAll,
    Removed,
    RemovedAll,
    StoredObject,
)

MARGIN_S: Final = 1.0
"""Added to a reader's lease and a writer's deadline before their space is touched: clocks run at different speed, and a
transfer that began in time may end a little late."""
NODE_RETRY_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """The pool's part of the configuration."""

    read_lease_s: float = 5.0
    writer_deadline_s: float = 30.0
    high_watermark: float = 0.95
    low_watermark: float = 0.85


class Pool:
    """Index of all objects and planner of all space."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        term: int,
        next_id: Callable[[], int],
        eviction: Callable[[], Eviction],
    ) -> None:
        """`next_id` gives numbers that no master of this cluster gave before; `eviction` makes a policy per node."""
        self._settings = settings
        self._term = term
        self._next_id = next_id
        self._eviction = eviction
        self._nodes: dict[str, NodeSpace] = {}
        self._objects: dict[str, PoolObject] = {}
        self._writing: dict[int, PoolObject] = {}
        self._children: dict[str, int] = {}
        self._writer_deadlines: list[tuple[float, int]] = []
        self._clear_again_at: float | None = None
        self._counters = Counters()
        self._changes = Changes()

    def handle(self, event: Event, now: float) -> list[Command]:
        """Takes notice of an event; says what is to be done."""
        commands = self._react(event, now)
        self._due(now)
        commands += self._clearings(now)
        return [*self._take_changes(), *commands]

    def next_deadline(self) -> float | None:
        """When time itself is the next event."""
        deadlines = [node.next_deadline() for node in self._nodes.values()]
        deadlines += [node.retry_at for node in self._nodes.values() if not node.ready]
        deadlines += [self._clear_again_at, self._writer_deadlines[0][0] if self._writer_deadlines else None]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def usage(self, name: str) -> tuple[int, int, int, str]:
        """(capacity, used bytes, objects, state) of a node."""
        node = self._nodes.get(name)
        if node is None:
            return 0, 0, 0, "unknown"
        return node.offer.capacity_bytes, node.used_bytes, len(node.taken), node.state.value

    def report(self, now: float, *, prefix: str = "", limit: int = 0) -> CacheReport:
        """The pool in numbers, and some of its objects. Prompt token counts are left to the caller."""
        counters = self._counters
        found = (entry for entry in self._objects.values() if entry.readable and entry.key.startswith(prefix))
        entries = [entry for entry, _ in zip(found, range(limit), strict=False)] if limit else []
        return CacheReport(
            num_objects=len(self._objects) - len(self._writing),
            num_writing=len(self._writing),
            capacity_bytes=sum(node.offer.capacity_bytes for node in self._nodes.values()),
            used_bytes=sum(node.used_bytes for node in self._nodes.values()),
            quarantined_bytes=sum(node.quarantined_bytes for node in self._nodes.values()),
            puts=counters.puts,
            skipped_puts=counters.skipped_puts,
            refused_puts=counters.refused_puts,
            hits=counters.hits,
            misses=counters.misses,
            evicted=counters.evicted,
            prompt_tokens=0,
            cached_tokens=0,
            entries=[entry.describe(now) for entry in entries],
        )

    def check(self) -> list[str]:
        """The integrity check: what does not add up. Empty when every byte and slot is accounted for exactly once."""
        return check(self._nodes, self._objects, set(self._writing), self._children)

    def _react(self, event: Event, now: float) -> list[Command]:
        match event:
            case Asked(token, message):
                return [Answer(token, self._answer(message, now))]
            case NodeJoined():
                return self._joined(event, now)
            case NodeFenced():
                return self._fenced(event, now)
            case BlocksReported(name, report):
                return self._reported(name, report, now)
            case SlotsCleared(name, incarnation, slots):
                if (node := self._node(name, incarnation)) is not None:
                    node.cleared(slots)
            case NodeLeft(name, incarnation):
                if self._node(name, incarnation) is not None:
                    self._left(name)
            case Tick():
                return self._retry_nodes(now)
        return []

    def _answer(
        self, message: PutStart | PutEnd | Get | Exists | Remove | RemoveAll, now: float
    ) -> Message | MooncakeError:
        match message:
            case PutStart():
                return self._put_start(message, now)
            case PutEnd():
                return self._put_end(message, now)
            case Get(keys=keys):
                return self._get(keys, now)
            case Exists(keys=keys):
                return ExistsReply(present=[self._readable(key) is not None for key in keys])
            case Remove(keys=keys, force=force):
                return Removed(refusals=[self._remove(key, force, now) for key in keys])
            case RemoveAll(force=force):
                refusals = [self._remove(key, force, now) for key in list(self._objects) if self._readable(key)]
                return RemovedAll(removed=refusals.count(""), kept=len(refusals) - refusals.count(""))

    # Writing

    def _put_start(self, message: PutStart, now: float) -> PutStarted:
        grants = [self._grant(wanted, message, now) for wanted in message.objects]
        names = {placement.node for grant in grants for placement in grant.placements}
        refused_bytes = sum(
            wanted.size_bytes
            for wanted, grant in zip(message.objects, grants, strict=True)
            if grant.refusal == NoSpace.code
        )
        for name, node in self._nodes.items():
            if refused_bytes or name in names:
                self._make_room(node, now, refused_bytes)
        return PutStarted(
            term=self._term,
            writer_deadline_s=self._settings.writer_deadline_s,
            grants=grants,
            segments={name: self._nodes[name].write for name in names},
        )

    def _grant(self, wanted: NewObject, message: PutStart, now: float) -> Grant:
        if wanted.key in self._objects:
            self._counters.skipped_puts += 1
            return Grant(key=wanted.key, refusal=ObjectExists.code)
        try:
            length = extent_bytes(wanted.key, wanted.parent, wanted.size_bytes)
        except InvalidRequest as error:
            return Grant(key=wanted.key, refusal=error.code)
        allocation_id = self._next_id()
        replicas = self._place(length, allocation_id, message)
        if not replicas:
            self._counters.refused_puts += 1
            return Grant(key=wanted.key, refusal=NoSpace.code)
        entry = PoolObject(wanted.key, wanted.parent, wanted.size_bytes, allocation_id, replicas, used_at=now)
        self._objects[wanted.key] = entry
        self._writing[allocation_id] = entry
        heapq.heappush(self._writer_deadlines, (now + self._settings.writer_deadline_s + MARGIN_S, allocation_id))
        return Grant(key=wanted.key, allocation_id=allocation_id, placements=self._placements(entry))

    def _place(self, length: int, allocation_id: int, message: PutStart) -> dict[str, Extent]:
        """Space on different nodes: the preferred one first, then those with the largest free share."""
        nodes = sorted(
            (node for node in self._nodes.values() if node.ready),
            key=lambda node: (node.name != message.preferred_node, -node.free_ratio(), node.name),
        )
        replicas: dict[str, Extent] = {}
        for node in nodes:
            if len(replicas) == message.replicas:
                break
            extent = node.allocate(length, allocation_id)
            if extent is not None:
                replicas[node.name] = extent
        return replicas

    def _put_end(self, message: PutEnd, now: float) -> PutEnded:
        for allocation_id in message.revoked:
            entry = self._writing.get(allocation_id)
            if entry is not None:
                self._drop(entry, now)
        stale = message.term != self._term
        return PutEnded(
            refusals=[StaleAllocation.code if stale else self._commit(commit, now) for commit in message.commits]
        )

    def _commit(self, commit: Commit, now: float) -> str:
        entry = self._writing.pop(commit.allocation_id, None)
        if entry is None:
            return StaleAllocation.code
        entry.checksum = commit.checksum
        self._counters.puts += 1
        self._publish(entry, now)
        return ""

    def _publish(self, entry: PoolObject, now: float) -> None:
        """From now on the object can be read, and evicted."""
        entry.readable = True
        entry.used_at = now
        if entry.parent:
            self._children[entry.parent] = self._children.get(entry.parent, 0) + 1
        for name in entry.replicas:
            self._nodes[name].eviction.added(entry.key)
            self._changes.stored.setdefault(name, []).append(entry.key)

    # Reading

    def _get(self, keys: Sequence[str], now: float) -> Got:
        objects = [self._locate(key, now) for key in keys]
        for key in reversed(keys):  # so that the tail of a chain counts as used before its head
            if (entry := self._readable(key)) is not None:
                for name in entry.replicas:
                    self._nodes[name].eviction.touched(key)
        names = {placement.node for found in objects if found for placement in found.placements}
        return Got(
            term=self._term,
            lease_s=self._settings.read_lease_s,
            objects=objects,
            segments={name: self._nodes[name].offer.read for name in names},
        )

    def _locate(self, key: str, now: float) -> Located | None:
        entry = self._readable(key)
        if entry is None:
            self._counters.misses += 1
            return None
        self._counters.hits += 1
        entry.lease_until = max(entry.lease_until, now + self._settings.read_lease_s + MARGIN_S)
        entry.used_at = now
        return Located(
            key=key,
            allocation_id=entry.allocation_id,
            size_bytes=entry.size_bytes,
            header_bytes=header_bytes(entry.key, entry.parent),
            checksum=entry.checksum,
            placements=self._placements(entry),
        )

    def _readable(self, key: str) -> PoolObject | None:
        entry = self._objects.get(key)
        return entry if entry is not None and entry.readable else None

    def _placements(self, entry: PoolObject) -> list[Placement]:
        return [
            Placement(node=name, incarnation=self._nodes[name].incarnation, slot=extent.slot, offset=extent.offset)
            for name, extent in entry.replicas.items()
        ]

    # Removing

    def _remove(self, key: str, force: bool, now: float) -> str:
        entry = self._readable(key)
        if entry is None:
            return ObjectNotFound.code
        if entry.lease_until > now and not force:
            return ObjectLeased.code
        self._drop(entry, now)
        return ""

    def _drop(self, entry: PoolObject, now: float) -> None:
        """The object is gone; its space is given up, once no lease covers it."""
        for name in list(entry.replicas):
            self._drop_replica(entry, name, now)

    def _drop_replica(self, entry: PoolObject, name: str, now: float) -> None:
        extent = entry.replicas.pop(name)
        self._nodes[name].give_up(extent, entry.lease_until, now)
        self._forget_replica(entry, name)

    def _forget_replica(self, entry: PoolObject, name: str) -> None:
        """Bookkeeping after a replica went; the last one takes the object along."""
        if entry.readable:
            self._nodes[name].eviction.removed(entry.key)
            self._changes.removed.setdefault(name, []).append(entry.key)
        if entry.replicas:
            return
        del self._objects[entry.key]
        self._writing.pop(entry.allocation_id, None)
        if entry.readable and entry.parent:
            self._children[entry.parent] -= 1
            if not self._children[entry.parent]:
                del self._children[entry.parent]

    def _make_room(self, node: NodeSpace, now: float, refused_bytes: int) -> None:
        """Evicts from above the high watermark to below the low one; and where a put was just refused, for want of
        bytes, of slots, or of a long enough extent, at least as much as it wanted: the next one finds room."""
        capacity = node.offer.capacity_bytes
        if not refused_bytes and node.live_bytes <= self._settings.high_watermark * capacity:
            return
        target = min(self._settings.low_watermark * capacity, node.live_bytes - refused_bytes)
        for key in node.eviction.candidates():
            if node.live_bytes <= target:
                return
            entry = self._objects[key]
            if entry.lease_until <= now and key not in self._children:
                self._drop_replica(entry, node.name, now)
                self._counters.evicted += 1

    # Nodes

    def _joined(self, event: NodeJoined, now: float) -> list[Command]:
        if self._node(event.name, event.incarnation) is not None:
            return []
        if event.name in self._nodes:
            self._left(event.name)
        node = NodeSpace(event.name, event.incarnation, event.offer, self._eviction())
        node.retry_at = now + NODE_RETRY_S
        self._nodes[event.name] = node
        return [FenceNode(node.name, node.incarnation)]

    def _fenced(self, event: NodeFenced, now: float) -> list[Command]:
        node = self._node(event.name, event.incarnation)
        if node is None or node.state is not NodeState.FENCING:
            return []
        node.write = event.write
        node.state = NodeState.REPORTING
        node.retry_at = now + NODE_RETRY_S
        return [AskReport(node.name, node.incarnation, node.cursor)]

    def _reported(self, name: str, report: BlockReport, now: float) -> list[Command]:
        node = self._node(name, report.incarnation)
        if node is None or node.state is not NodeState.REPORTING:
            return []
        for stored in report.objects:
            self._adopt(node, stored, now)
        node.cursor = report.next_cursor
        node.retry_at = now + NODE_RETRY_S
        if report.next_cursor >= 0:
            return [AskReport(name, node.incarnation, node.cursor)]
        node.open()
        return []

    def _adopt(self, node: NodeSpace, stored: StoredObject, now: float) -> None:
        """An object that an earlier master knew. Its reader of then may still be reading."""
        length = extent_bytes(stored.key, stored.parent, stored.size_bytes)
        extent = Extent(stored.slot, stored.offset, length, stored.allocation_id)
        if node.name in self._replicas_of(stored.key) or not node.adopt(extent):
            return
        entry = self._objects.get(stored.key)
        lease_until = now + self._settings.read_lease_s + MARGIN_S
        if entry is not None and entry.allocation_id == stored.allocation_id:
            entry.replicas[node.name] = extent
            node.eviction.added(stored.key)
            self._changes.stored.setdefault(node.name, []).append(stored.key)
        elif entry is None:
            entry = PoolObject(
                stored.key,
                stored.parent,
                stored.size_bytes,
                stored.allocation_id,
                {node.name: extent},
                checksum=stored.checksum,
                lease_until=lease_until,
            )
            self._objects[stored.key] = entry
            self._publish(entry, now)
        else:  # another put of the same key won elsewhere
            node.give_up(extent, lease_until, now)

    def _replicas_of(self, key: str) -> Iterable[str]:
        entry = self._objects.get(key)
        return entry.replicas if entry else ()

    def _left(self, name: str) -> None:
        for entry in list(self._objects.values()):
            if entry.replicas.pop(name, None) is not None:
                self._forget_replica(entry, name)
        del self._nodes[name]

    def _node(self, name: str, incarnation: int) -> NodeSpace | None:
        node = self._nodes.get(name)
        return node if node is not None and node.incarnation == incarnation else None

    # Time

    def _due(self, now: float) -> None:
        while self._writer_deadlines and self._writer_deadlines[0][0] <= now:
            _, allocation_id = heapq.heappop(self._writer_deadlines)
            entry = self._writing.get(allocation_id)
            if entry is not None:
                self._drop(entry, now)
        for node in self._nodes.values():
            node.due(now)
        if self._clear_again_at is not None and self._clear_again_at <= now:
            self._clear_again_at = None
            for node in self._nodes.values():
                node.resend()

    def _clearings(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for node in self._nodes.values():
            slots = node.unsent() if node.ready else []
            if slots:
                commands.append(ClearNodeSlots(node.name, node.incarnation, slots))
        clearing = any(node.clearing for node in self._nodes.values())
        if not clearing:
            self._clear_again_at = None
        elif self._clear_again_at is None:
            self._clear_again_at = now + NODE_RETRY_S
        return commands

    def _retry_nodes(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for node in self._nodes.values():
            if node.ready or node.retry_at > now:
                continue
            node.retry_at = now + NODE_RETRY_S
            if node.state is NodeState.FENCING:
                commands.append(FenceNode(node.name, node.incarnation))
            else:
                commands.append(AskReport(node.name, node.incarnation, node.cursor))
        return commands

    def _take_changes(self) -> list[Command]:
        changes, self._changes = self._changes, Changes()
        removed: list[Command] = [BlocksRemoved(name, keys) for name, keys in changes.removed.items()]
        stored: list[Command] = [BlocksStored(name, keys) for name, keys in changes.stored.items()]
        return [*removed, *stored]
