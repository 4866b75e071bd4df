"""Draining: a node takes nothing new, and what it has goes to others, until its process may be stopped. Pure.

The node itself remembers that it drains, and says so when it joins: so a new master goes on with it. A node that was
started anew is empty, and does not drain.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mooncake_core.errors import NodeNotFound, NoSpace, ObjectNotFound, StoreError
from mooncake_core.store.events import MarkNode, NodeJoined, NodeMarked
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.objects import PoolObject
from mooncake_core.store.tasks import PULLS_PER_NODE, CopyTasks, DropReplica, Task, TaskState
from mooncake_core.wire.messages.tasks import DrainStatus

LOOKED_AT_ONCE: Final = 1024
"""Objects, of whatever nodes, that are decided on in one go, so that other work comes in between."""
LOOK_AGAIN_S: Final = 2.0
"""What was being written, and what did not fit, may be moved later."""
LONGEST_REST_S: Final = 60.0
"""Where nothing could be moved the last time either."""
MARK_RETRY_S: Final = 2.0


@dataclass(slots=True)
class _Drain:
    """One node's draining."""

    node: NodeSpace
    force: bool
    keys: list[str] = field(default_factory=list)
    """Still to be looked at, the next one last."""
    moving: int = 0
    moved: int = 0
    released: int = 0
    dropped: int = 0
    stuck: dict[str, str] = field(default_factory=dict)
    """Key → why it could not go, since the objects were listed last."""
    all_were_asked: bool = True
    """Every node could say whether it has room, when the objects were listed last."""
    look_again_at: float = 0.0
    rest_s: float = LOOK_AGAIN_S
    is_marked: bool = False
    mark_at: float = 0.0

    @property
    def is_waiting(self) -> bool:
        """It has something that nobody looks at."""
        return bool(self.node.taken) and not self.keys and not self.moving

    @property
    def may_look(self) -> bool:
        return bool(self.keys) and self.moving < PULLS_PER_NODE

    @property
    def state(self) -> str:
        if self.node.ready and not self.node.used_bytes:
            return "drained"
        return "stuck" if self.stuck and self.is_waiting and self.all_were_asked else "draining"

    def task_ended(self, task: Task) -> None:
        self.moving -= 1
        if task.state is TaskState.DONE:
            self.moved += 1
        elif task.reason != ObjectNotFound.code:
            self.stuck[task.key] = task.reason

    def describe(self) -> DrainStatus:
        """For people."""
        return DrainStatus(
            name=self.node.name,
            state=self.state,
            objects_left=len(self.node.taken),
            bytes_left=self.node.used_bytes,
            moved=self.moved,
            released=self.released,
            dropped=self.dropped,
            stuck=len(self.stuck),
            reason=next(reversed(self.stuck.values()), ""),
        )


class Draining:
    """All nodes that drain."""

    def __init__(
        self,
        nodes: Mapping[str, NodeSpace],
        index: ObjectIndex,
        tasks: CopyTasks,
        *,
        drop_replica: DropReplica,
        high_watermark: float,
    ) -> None:
        """Nodes are not filled above the high watermark: what is above it would go with the next put."""
        self._nodes = nodes
        self._index = index
        self._tasks = tasks
        self._drop_replica = drop_replica
        self._high_watermark = high_watermark
        self._drains: dict[str, _Drain] = {}
        self._ended: dict[str, _Drain] = {}
        """Whose nodes do not know yet that they drain no more."""

    def begin(self, name: str, force: bool) -> None:
        """No new objects for a node from now on. Asking again changes only `force`.

        Raises:
            NodeNotFound: there is no such node.
        """
        node = self._nodes.get(name)
        if node is None:
            raise NodeNotFound(f"expected a node of the pool, got {name}: `mooncake inspect nodes` lists them")
        drain = self._drains.get(name)
        if drain is None or drain.node is not node:
            node.drain(True)
            self._drains[name] = drain = _Drain(node, force)
            self._ended.pop(name, None)
        drain.force = force
        drain.look_again_at = 0.0

    def end(self, name: str) -> None:
        """The node takes objects again; those that are on their way still go.

        Raises:
            NodeNotFound: no such node drains.
        """
        drain = self._drains.pop(name, None)
        if drain is None:
            raise NodeNotFound(f"expected a node that is being drained, got {name}")
        drain.node.drain(False)
        self._ended[name] = _Drain(drain.node, force=False)

    def status(self, names: Sequence[str]) -> list[DrainStatus]:
        """Of these nodes, or of all that drain."""
        return [self._drains[name].describe() for name in names or sorted(self._drains) if name in self._drains]

    def joined(self, event: NodeJoined) -> None:
        """A node that was drained under an earlier master, or before it was silent, is so still."""
        node = self._nodes[event.name]
        drain, ended = self._drains.get(event.name), self._ended.get(event.name)
        if ended is not None and ended.node.incarnation == event.incarnation:
            self._ended[event.name] = _Drain(node, force=False)
        elif drain is not None and drain.node.incarnation == event.incarnation:
            node.drain(True)
            drain.node, drain.keys, drain.is_marked, drain.look_again_at = node, [], False, 0.0
        else:
            self._drains.pop(event.name, None)
            self._ended.pop(event.name, None)
            if event.offer.draining:
                self.begin(event.name, force=False)

    def marked(self, event: NodeMarked) -> None:
        """A node remembers."""
        drain = (self._drains if event.draining else self._ended).get(event.name)
        if drain is not None and drain.node.incarnation == event.incarnation:
            drain.is_marked = True
            if not event.draining:
                del self._ended[event.name]

    @property
    def is_idle(self) -> bool:
        """Nothing is to be done, whatever happens to objects."""
        return not self._drains and not self._ended

    def advance(self, now: float) -> list[MarkNode]:
        """Sends the next objects away; what nodes are to be told."""
        for drain in self._here(self._drains):
            self._list(drain, now)
            for _ in range(LOOKED_AT_ONCE):
                if not drain.may_look:
                    break
                self._send_away(drain, drain.keys.pop(), now)
        return list(self._marks(now))

    def next_deadline(self) -> float | None:
        """When time itself is the next event; in the past where there is more to look at."""
        moments = [0.0 for drain in self._here(self._drains) if drain.may_look]
        moments += [drain.look_again_at for drain in self._here(self._drains) if drain.is_waiting]
        moments += [drain.mark_at for drain in self._unmarked()]
        return min(moments, default=None)

    def _here(self, drains: Mapping[str, _Drain]) -> Iterator[_Drain]:
        """Those whose nodes are there, and have said what they hold."""
        return (drain for name, drain in drains.items() if drain.node.ready and self._nodes.get(name) is drain.node)

    def _unmarked(self) -> Iterator[_Drain]:
        here = itertools.chain(self._here(self._drains), self._here(self._ended))
        return (drain for drain in here if not drain.is_marked)

    def _marks(self, now: float) -> Iterator[MarkNode]:
        for drain in self._unmarked():
            if drain.mark_at <= now:
                drain.mark_at = now + MARK_RETRY_S
                yield MarkNode(drain.node.name, drain.node.incarnation, drain.node.draining)

    def _list(self, drain: _Drain, now: float) -> None:
        """Lists all objects, when all that were listed before have been looked at; what was put last goes first."""
        if not drain.is_waiting or drain.look_again_at > now:
            return
        drain.rest_s = min(2 * drain.rest_s, LONGEST_REST_S) if drain.state == "stuck" else LOOK_AGAIN_S
        drain.keys = self._index.keys()
        drain.all_were_asked = self._can_all_be_asked()
        drain.look_again_at = now + drain.rest_s
        drain.stuck = {}

    def _send_away(self, drain: _Drain, key: str, now: float) -> None:
        name = drain.node.name
        entry = self._index.readable(key)
        if entry is None or name not in entry.replicas:
            return
        if any(self._nodes[other].ready and not self._nodes[other].draining for other in entry.replicas):
            drain.released += 1
            self._drop_replica(entry, name, now)
        elif (target := self._target(entry, drain.node)) is not None:
            self._move(drain, key, target, now)
        elif drain.force and self._can_all_be_asked():
            drain.dropped += 1
            self._drop_replica(entry, name, now)
        else:
            drain.stuck[key] = NoSpace.code

    def _move(self, drain: _Drain, key: str, target: NodeSpace, now: float) -> None:
        try:
            self._tasks.add(key, target.name, now, source=drain.node.name, move=True, on_end=drain.task_ended)
        except StoreError as error:
            drain.stuck[key] = error.code
        else:
            drain.moving += 1

    def _can_all_be_asked(self) -> bool:
        """Whether no node is in the midst of joining, or of shutting a writer out."""
        return all(node.writable or node.draining for node in self._nodes.values())

    def _target(self, entry: PoolObject, source: NodeSpace) -> NodeSpace | None:
        """The emptiest node that has room, and neither has the object nor is about to."""
        length = entry.replicas[source.name].length
        fitting = (
            node
            for node in self._nodes.values()
            if node.accepts
            and node.name not in entry.replicas
            and not self._tasks.comes_to(entry.key, node.name)
            and node.used_bytes + length <= self._high_watermark * node.offer.capacity_bytes
        )
        return max(fitting, key=lambda node: (node.free_ratio(), node.name), default=None)
