"""The pool's nodes: how they join, are fenced, report what they hold, and are asked to clear slots. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from mooncake_core.store.events import (
    AskReport,
    BlocksReported,
    ClearNodeSlots,
    Command,
    FenceNode,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    SlotsCleared,
)
from mooncake_core.store.eviction import Eviction
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.layout import extent_bytes
from mooncake_core.store.node_chores import NodeChores
from mooncake_core.store.node_space import Extent, NodeSpace, NodeState
from mooncake_core.store.objects import PoolObject
from mooncake_core.store.removals import Removals
from mooncake_core.store.replicas import Replicas
from mooncake_core.store.tenants import Tenants
from mooncake_core.store.tiers.contract import TierKey
from mooncake_core.wire.messages.pool import StoredObject

NODE_RETRY_S: Final = 2.0


class Roster:
    """The nodes by name, each in its latest incarnation."""

    def __init__(
        self,
        nodes: dict[str, NodeSpace],
        index: ObjectIndex,
        tenants: Tenants,
        removals: Removals,
        *,
        old_lease_s: float,
        eviction: Callable[[], Eviction],
        outdate: Callable[[str, int, float], None],
        chores: NodeChores,
    ) -> None:
        """`old_lease_s`: how long a reader of an earlier master may still read what a node reports; `outdate(key,
        allocation_id, now)` drops what is older of a key."""
        self._nodes = nodes
        self._index = index
        self._tenants = tenants
        self._removals = removals
        self._old_lease_s = old_lease_s
        self._eviction = eviction
        self._outdate = outdate
        self._rounds = itertools.count(1)
        self._chores = chores
        self._away: set[str] = set()
        self._clear_again_at: float | None = None

    @property
    def is_one_away(self) -> bool:
        """Whether a node that was here has gone: it may come back with what it had, in DRAM if it was only silent."""
        return bool(self._away)

    def handle(
        self, event: NodeJoined | NodeFenced | BlocksReported | SlotsCleared | NodeLeft, now: float
    ) -> list[Command]:
        """A node has come, gone, or answered."""
        match event:
            case NodeJoined():
                return self._joined(event, now)
            case NodeFenced():
                return self._fenced(event, now)
            case BlocksReported():
                return self._reported(event, now)
            case SlotsCleared(name, incarnation, slots):
                if (node := self._node(name, incarnation)) is not None:
                    node.cleared(slots)
            case NodeLeft(name, incarnation):
                if self._node(name, incarnation) is not None:
                    self._left(name)
        return []

    def retry(self, now: float) -> list[Command]:
        """Asks nodes again that did not answer in time."""
        commands: list[Command] = []
        for node in self._chores.unwritable:
            if node.retry_at > now:
                continue
            node.retry_at = now + NODE_RETRY_S
            commands.append(_fence(node) if node.fencing else _ask_report(node))
        if self._clear_again_at is not None and self._clear_again_at <= now:
            self._clear_again_at = None
            for node in self._chores.unconfirmed:
                node.resend()
        return commands

    def requests(self, now: float) -> list[Command]:
        """What nodes are to be asked because of what has happened: to shut writers out, to clear slots."""
        commands: list[Command] = []
        for node in self._chores.take_due(now):
            if self._nodes.get(node.name) is node:
                node.due(now)
        for node in self._chores.take_to_ask():
            if node.needs_fence:
                commands.append(self._begin_fence(node, now))
            slots = node.unsent() if node.ready else []  # else when it is
            if slots:
                commands.append(ClearNodeSlots(node.name, node.incarnation, slots))
        if not self._chores.unconfirmed:
            self._clear_again_at = None
        elif self._clear_again_at is None:
            self._clear_again_at = now + NODE_RETRY_S
        return commands

    def deadlines(self) -> list[float | None]:
        """When time itself is the next event."""
        retries = [node.retry_at for node in self._chores.unwritable] if self._chores.unwritable else ()
        return [self._chores.next_quarantine(), self._clear_again_at, *retries]

    def _joined(self, event: NodeJoined, now: float) -> list[Command]:
        if self._node(event.name, event.incarnation) is not None:
            return []
        if event.name in self._nodes:
            self._left(event.name)
        self._away.discard(event.name)
        node = NodeSpace(event.name, event.incarnation, event.offer, self._eviction(), self._chores)
        self._nodes[event.name] = node
        return [self._begin_fence(node, now)]

    def _begin_fence(self, node: NodeSpace, now: float) -> Command:
        node.begin_fence(next(self._rounds))
        node.retry_at = now + NODE_RETRY_S
        return _fence(node)

    def _fenced(self, event: NodeFenced, now: float) -> list[Command]:
        node = self._node(event.name, event.incarnation)
        if node is None or not node.fencing or event.round != node.round:
            return []
        node.fenced(event.write)
        if node.state is not NodeState.FENCING:
            return []
        node.state = NodeState.REPORTING
        node.retry_at = now + NODE_RETRY_S
        return [_ask_report(node)]

    def _reported(self, event: BlocksReported, now: float) -> list[Command]:
        asked, report = event.asked, event.report
        node = self._node(asked.name, report.incarnation)
        if (
            node is None
            or node.state is not NodeState.REPORTING
            or (asked.round, asked.cursor) != (node.round, node.cursor)
        ):
            return []
        for stored in report.objects:
            self._adopt(node, stored, now)
        node.end_part(report.next_cursor if report.next_cursor >= 0 else node.offer.num_slots)
        node.retry_at = now + NODE_RETRY_S
        if report.next_cursor >= 0:
            return [_ask_report(node)]
        node.open()
        return []

    def _adopt(self, node: NodeSpace, stored: StoredObject, now: float) -> None:
        """An object that an earlier master knew. Its reader of then may still be reading."""
        length = extent_bytes(stored.key, stored.parent, stored.size_bytes)
        extent = Extent(stored.slot, stored.offset, length, stored.allocation_id)
        if not node.adopt(extent):
            return
        entry = self._index.written_by(stored.allocation_id)
        if entry is None:  # else it replaces an older one when it is committed
            self._outdate(stored.key, stored.allocation_id, now)
            entry = self._index.get(stored.key)
        lease_until = now + self._old_lease_s
        is_known = entry is not None and entry.allocation_id == stored.allocation_id
        is_gone = not is_known and self._removals.covers(TierKey(stored.key, stored.allocation_id))
        if stored.removed or is_gone or (entry is not None and _prevails(entry, stored)):
            node.give_up(extent, lease_until, now)
        elif entry is not None and is_known:
            entry.lease_until = max(entry.lease_until, lease_until)
            self._index.add_replica(entry, node.name, extent)
        else:
            entry = PoolObject(
                stored.key,
                stored.parent,
                stored.size_bytes,
                stored.allocation_id,
                Replicas(node.name, extent),
                self._tenants.owner_of(stored.key),
                checksum=stored.checksum,
                lease_until=lease_until,
            )
            self._index.publish(entry, now)

    def _left(self, name: str) -> None:
        self._index.drop_node(name)
        self._chores.forget(self._nodes.pop(name))
        self._away.add(name)

    def _node(self, name: str, incarnation: int) -> NodeSpace | None:
        node = self._nodes.get(name)
        return node if node is not None and node.incarnation == incarnation else None


def _prevails(entry: PoolObject, stored: StoredObject) -> bool:
    """Whether what is known of a key makes a reported object one that is gone: all was removed while it was written, or it
    was replaced since. Ids grow: of two the later put has the greater one."""
    if entry.allocation_id == stored.allocation_id:
        return entry.doomed
    return entry.readable and entry.allocation_id > stored.allocation_id


def _fence(node: NodeSpace) -> Command:
    return FenceNode(node.name, node.incarnation, node.round)


def _ask_report(node: NodeSpace) -> Command:
    return AskReport(node.name, node.incarnation, node.round, node.cursor)
