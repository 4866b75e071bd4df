"""What operators ask of the pool: copies and moves, draining, making room. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mooncake_core.errors import MooncakeError, NodeNotFound
from mooncake_core.store.draining import Draining
from mooncake_core.store.events import Command, Event, NodeJoined, NodeMarked, ObjectsPulled
from mooncake_core.store.evicting import Evict, victims
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.scans import selector
from mooncake_core.store.tasks import CopyTasks, DropReplica
from mooncake_core.store.tenants import qualified, split
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.tasks import (
    CancelTasks,
    CopyObjects,
    DrainNode,
    Drains,
    DrainStatus,
    Evicted,
    EvictObjects,
    OperatorQuestion,
    QueryDrains,
    QueryTasks,
    ReplicateObjects,
    StartedTask,
    TaskReport,
    TasksCancelled,
    TasksStarted,
    UndrainNode,
)

EVICTED_AT_ONCE: Final = 4096


class Operations:
    """The part of the pool that operators talk to."""

    def __init__(
        self,
        nodes: Mapping[str, NodeSpace],
        index: ObjectIndex,
        *,
        next_id: Callable[[], int],
        drop_replica: DropReplica,
        evict: Evict,
        high_watermark: float,
    ) -> None:
        self._nodes = nodes
        self._index = index
        self._evict_from = evict
        self._tasks = CopyTasks(nodes, index, next_id=next_id, drop_replica=drop_replica)
        self._draining = Draining(nodes, index, self._tasks, drop_replica=drop_replica, high_watermark=high_watermark)

    def answer(self, message: OperatorQuestion, now: float) -> Message:
        """What an operator is told.

        Raises:
            NodeNotFound: there is no node of that name, or none that drains.
        """
        match message:
            case CopyObjects(keys=keys, target=target):
                wanted = [(key, target) for key in keys]
                return self._start(message.tenant, wanted, now, source=message.source, move=message.move)
            case ReplicateObjects():
                return self._start(message.tenant, self._missing(message), now)
            case QueryTasks(task_ids=task_ids, limit=limit):
                found = self._tasks.report(task_ids, limit, now)
                return TaskReport(tasks=found, pending=self._tasks.num_pending, running=self._tasks.num_running)
            case CancelTasks(task_ids=task_ids):
                return TasksCancelled(refusals=[self._tasks.cancel(task_id) for task_id in task_ids])
            case DrainNode(name=name, force=force):
                self._draining.begin(name, force)
            case UndrainNode(name=name):
                self._draining.end(name)
            case QueryDrains(names=names):
                return Drains(drains=self._draining.status(names))
            case EvictObjects():
                return self._evict(message, now)
        return Done()

    @property
    def _is_idle(self) -> bool:
        """As it mostly is: then it costs the pool next to nothing."""
        return self._tasks.is_idle and self._draining.is_idle

    def after(self, event: Event, now: float) -> list[Command]:
        """Takes notice of what has happened, once the nodes' spaces and the index have; says what is to be done."""
        match event:
            case ObjectsPulled():
                self._tasks.pulled(event, now)
            case NodeJoined():
                self._draining.joined(event)
            case NodeMarked():
                self._draining.marked(event)
        if self._is_idle:
            return []
        ended = self._tasks.advance(now)  # first, so that nodes have room for what is to be moved next
        marks = self._draining.advance(now)
        return [*ended, *marks, *self._tasks.advance(now)]

    def next_deadline(self) -> float | None:
        """When time itself is the next event."""
        if self._is_idle:
            return None
        moments = (self._tasks.next_deadline(), self._draining.next_deadline())
        return min((moment for moment in moments if moment is not None), default=None)

    def drain_of(self, name: str) -> DrainStatus | None:
        """How far a node's draining is; None where it does not drain."""
        return next(iter(self._draining.status([name])), None)

    def _start(
        self,
        tenant: str,
        wanted: Sequence[tuple[str, str]],
        now: float,
        *,
        source: str = "",
        move: bool = False,
    ) -> TasksStarted:
        """Begins copies of (key, target); keys are as the tenant calls them."""
        started = []
        names = qualified(tenant, [key for key, _ in wanted])
        for (key, target), name in zip(wanted, names, strict=True):
            try:
                task = self._tasks.add(name, target, now, source=source, move=move)
            except MooncakeError as error:
                started.append(StartedTask(key=key, target=target, refusal=error.code))
            else:
                started.append(StartedTask(key=key, target=target, task_id=task.task_id))
        return TasksStarted(tasks=started)

    def _missing(self, message: ReplicateObjects) -> list[tuple[str, str]]:
        """(key, node) of the copies that are wanted beside those there are and those under way. The node is empty where an
        object is unknown, or where no node is left."""
        keys = list(qualified(message.tenant, message.keys))
        if message.prefix:
            selects = selector(message.tenant, prefix=message.prefix)
            keys += [entry.key for entry in self._index.all_readable() if selects(entry.key)]
        return [(split(key)[1], name) for key in dict.fromkeys(keys) for name in self._targets(key, message.replicas)]

    def _targets(self, key: str, replicas: int) -> Sequence[str]:
        """The emptiest nodes for the copies that an object lacks."""
        entry = self._index.readable(key)
        if entry is None:
            return [""]
        coming = {name for name in self._nodes if self._tasks.comes_to(key, name)}
        there = coming | {name for name in entry.replicas if not self._nodes[name].draining}
        free = [node for node in self._nodes.values() if node.accepts and node.name not in {*there, *entry.replicas}]
        names = [node.name for node in sorted(free, key=lambda node: (-node.free_ratio(), node.name))]
        lacking = max(0, replicas - len(there))
        return [*names, *[""] * lacking][:lacking]

    def _evict(self, message: EvictObjects, now: float) -> Evicted:
        node = self._nodes.get(message.node)
        if node is None:
            raise NodeNotFound(f"expected a node of the pool, got {message.node}: `mooncake inspect nodes` lists them")
        objects = size_bytes = 0
        for entry in victims(node, self._index, now):
            before_bytes, before_slots = node.live_bytes, node.spare_slots
            self._evict_from(entry, node, now)
            size_bytes += before_bytes - node.live_bytes
            objects += node.spare_slots - before_slots
            enough = bool(message.size_bytes) and size_bytes >= message.size_bytes
            if enough or objects >= EVICTED_AT_ONCE:
                return Evicted(objects=objects, size_bytes=size_bytes, more=not enough)
        return Evicted(objects=objects, size_bytes=size_bytes)
