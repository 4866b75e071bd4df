"""Copies and moves of objects between nodes. Pure.

The target pulls: it is given space, reads the object from the source into it, checks it, commits it in its own directory,
and says so; only then does the master know the replica, and a move's source goes. So whoever dies in between, what was
there before is there still. Space of a pull that came to nothing is cleared like any other, and a node clears a slot only
when no pull writes there any more: see docs/decisions/0013.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import (
    DeadlineExceeded,
    NodeDraining,
    NodeNotFound,
    NoSpace,
    ObjectExists,
    ObjectNotFound,
    TaskNotFound,
    TooManyTasks,
)
from mooncake_core.store.events import ObjectsPulled, PullToNode
from mooncake_core.store.index import ObjectIndex
from mooncake_core.store.node_space import Extent, NodeSpace
from mooncake_core.store.objects import PoolObject
from mooncake_core.store.tenants import split
from mooncake_core.wire.messages.tasks import Pull, TaskStatus

PULLS_PER_NODE: Final = 128
"""Objects that move to or from one node at a time."""
PULL_BYTES_PER_NODE: Final = 64 << 20
"""No more is begun where so much moves already: a pull must end in time also over a slow network."""
MAX_TASKS: Final = 100_000
"""That wait or run; more are refused."""
TASKS_KEPT: Final = 10_000
"""That have ended."""
TASK_DEADLINE_S: Final = 600.0
RETRY_S: Final = 1.0
"""Before what could not be done is tried again; longer each time."""
ATTEMPTS: Final = 4
"""Pulls that fail before a task does. Together they take longer than it takes to notice that a node is dead."""
AWAY_S: Final = 30.0
"""A target that was lost and is not back after so long is not waited for: another one may be named."""
ANSWER_S: Final = 15.0
"""A node that has not answered after so long is asked again."""

DropReplica = Callable[[PoolObject, str, float], None]


class TaskState(enum.Enum):
    """How far a task is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class _Copying:
    """A pull under way, and what it holds."""

    pull_id: int
    entry: PoolObject
    source: NodeSpace
    target: NodeSpace
    extent: Extent
    ask_at: float


@dataclass(slots=True, kw_only=True)
class Task:
    """One object's way to one node."""

    task_id: int
    key: str
    target: str
    source: str
    """Empty for any."""
    move: bool
    since: float
    state: TaskState = TaskState.PENDING
    reason: str = ""
    attempts: int = 0
    away_since: float | None = None
    """Since when the target is missed, as far as it was looked for."""
    on_end: Callable[[Task], None] | None = None
    copying: _Copying | None = None

    @property
    def has_ended(self) -> bool:
        return self.state not in (TaskState.PENDING, TaskState.RUNNING)

    def describe(self, now: float) -> TaskStatus:
        """For people."""
        tenant, key = split(self.key)
        return TaskStatus(
            task_id=self.task_id,
            tenant=tenant,
            key=key,
            source=self.copying.source.name if self.copying else self.source,
            target=self.target,
            move=self.move,
            state=self.state.value,
            reason=self.reason,
            attempts=self.attempts,
            age_s=now - self.since,
        )


@dataclass(slots=True)
class _Load:
    """What moves to and from one node."""

    objects: int = 0
    size_bytes: int = 0

    @property
    def is_full(self) -> bool:
        return self.objects >= PULLS_PER_NODE or self.size_bytes >= PULL_BYTES_PER_NODE

    def add(self, count: int, length: int) -> None:
        self.objects += count
        self.size_bytes += count * length


class CopyTasks:
    """All tasks. `advance` must follow each event, so that what a task relies on is there, or was noticed to be gone."""

    def __init__(
        self,
        nodes: Mapping[str, NodeSpace],
        index: ObjectIndex,
        *,
        next_id: Callable[[], int],
        drop_replica: DropReplica,
    ) -> None:
        self._nodes = nodes
        self._index = index
        self._next_id = next_id
        self._drop_replica = drop_replica
        self._tasks: dict[int, Task] = {}
        """That have not ended."""
        self._ended: OrderedDict[int, Task] = OrderedDict()
        self._ways: set[tuple[str, str]] = set()
        """(key, target) of tasks that have not ended: an object has one space at most on a node."""
        self._queues: dict[str, deque[Task]] = {}
        """Target → tasks that may begin."""
        self._resting: list[tuple[float, int]] = []
        """(when, task id) of those that try again later."""
        self._running: dict[int, Task] = {}
        """By pull id."""
        self._loads: dict[str, _Load] = {}

    @property
    def is_idle(self) -> bool:
        """Nothing is to be done, whatever happens to objects."""
        return not self._tasks

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_pending(self) -> int:
        return len(self._tasks) - len(self._running)

    def add(
        self,
        key: str,
        target: str,
        now: float,
        *,
        source: str = "",
        move: bool = False,
        on_end: Callable[[Task], None] | None = None,
    ) -> Task:
        """A new task; it begins with the next `advance`. Its end is told to `on_end`.

        Raises:
            ObjectNotFound: there is no such object, or not on `source`.
            NodeNotFound, NodeDraining: the target cannot take anything.
            ObjectExists: the target has the object, or another task brings it there.
            TooManyTasks: try again when some have ended.
        """
        self._check(key, target, source)
        task = Task(task_id=self._next_id(), key=key, target=target, source=source, move=move, since=now, on_end=on_end)
        self._tasks[task.task_id] = task
        self._ways.add((key, target))
        self._queues.setdefault(target, deque()).append(task)
        return task

    def comes_to(self, key: str, target: str) -> bool:
        """Whether a task brings an object to a node."""
        return (key, target) in self._ways

    def cancel(self, task_id: int) -> str:
        """Ends a task; an error code where there is none that could end."""
        task = self._tasks.get(task_id)
        if task is None:
            return TaskNotFound.code
        self._give_up(task)
        self._end(task, TaskState.CANCELLED)
        return ""

    def report(self, task_ids: Sequence[int], limit: int, now: float) -> list[TaskStatus]:
        """The tasks of these numbers that are known, or the newest ones."""
        wanted = task_ids or heapq.nlargest(limit, itertools.chain(self._tasks, self._ended))
        found = (self._tasks.get(number) or self._ended.get(number) for number in wanted)
        return [task.describe(now) for task in found if task is not None]

    def pulled(self, event: ObjectsPulled, now: float) -> None:
        """A node has answered."""
        for pull_id, refusal in event.refusals.items():
            task = self._running.get(pull_id)
            copying = task.copying if task is not None else None
            if task is None or copying is None or copying.target.incarnation != event.incarnation:
                continue
            if self._is_lost(copying) or refusal:
                self._again(task, refusal or ObjectNotFound.code, now)
            else:
                self._arrived(task, copying, now)

    def advance(self, now: float) -> list[PullToNode]:
        """Ends what has become impossible, begins what can begin; what nodes are to be asked."""
        asked = [task for task in list(self._running.values()) if self._must_ask(task, now)]
        while self._resting and self._resting[0][0] <= now:
            task = self._tasks.get(heapq.heappop(self._resting)[1])
            if task is not None:
                self._queues.setdefault(task.target, deque()).append(task)
        for target in list(self._queues):
            asked += self._begin_some(target, now)
        return _requests(asked)

    def next_deadline(self) -> float | None:
        """When time itself is the next event."""
        moments = [task.copying.ask_at for task in self._running.values() if task.copying]
        return min([*moments, *(moment for moment, _ in self._resting[:1])], default=None)

    def _check(self, key: str, target: str, source: str) -> None:
        entry = self._index.readable(key)
        if entry is None or (source not in entry.replicas if source else not entry.replicas):
            raise ObjectNotFound(f"expected an object {key} in DRAM{f' on {source}' if source else ''}, there is none")
        node = self._nodes.get(target)
        if node is None:
            raise NodeNotFound(f"expected a node of the pool, got {target}: `mooncake inspect nodes` lists them")
        if node.draining:
            raise NodeDraining(f"{target} is being drained: name another node, or undrain it")
        if target in entry.replicas or (key, target) in self._ways:
            raise ObjectExists(f"{target} has {key}, or is about to have it")
        if len(self._tasks) >= MAX_TASKS:
            raise TooManyTasks(f"{MAX_TASKS} copies wait: ask again when some have ended")

    def _begin_some(self, target: str, now: float) -> list[Task]:
        """Begins what waits for a node, in order, until the node or the next one's source has enough to do."""
        queue = self._queues[target]
        begun: list[Task] = []
        while queue and not self._load(target).is_full:
            task = queue[0]
            if not task.has_ended and not self._begin(task, now):
                return begun
            queue.popleft()
            if task.copying is not None:
                begun.append(task)
        if not queue:
            del self._queues[target]
        return begun

    def _begin(self, task: Task, now: float) -> bool:
        """Begins a task, or puts it off, or ends it; False where it is to wait for its source to have less to do."""
        entry = self._index.readable(task.key)
        source = self._source(task, entry) if entry else None
        target = self._nodes.get(task.target)
        task.away_since = None if target is not None else (task.away_since or now)
        if now >= task.since + TASK_DEADLINE_S:
            self._end(task, TaskState.FAILED, task.reason or DeadlineExceeded.code)
        elif entry is None or not entry.replicas:
            self._end(task, TaskState.FAILED, ObjectNotFound.code)
        elif task.target in entry.replicas:  # a node that was gone has come back with it
            self._finish(task, entry, task.source, now)
        elif task.away_since is not None and now >= task.away_since + AWAY_S:
            self._end(task, TaskState.FAILED, NodeNotFound.code)
        elif target is None or not target.writable or source is None:
            self._rest(task, NodeNotFound.code, now)
        elif target.draining:
            self._end(task, TaskState.FAILED, NodeDraining.code)
        elif self._load(source.name).is_full:
            return False
        else:
            self._pull(task, entry, source, target, now)
        return True

    def _pull(self, task: Task, entry: PoolObject, source: NodeSpace, target: NodeSpace, now: float) -> None:
        length = entry.replicas[source.name].length
        extent = target.allocate(length, entry.allocation_id)
        if extent is None:
            self._end(task, TaskState.FAILED, NoSpace.code)
            return
        task.copying = _Copying(self._next_id(), entry, source, target, extent, now + ANSWER_S)
        task.state = TaskState.RUNNING
        task.attempts += 1
        self._index.copy_begins(entry)
        self._running[task.copying.pull_id] = task
        for node in (source, target):
            self._load(node.name).add(1, length)

    def _source(self, task: Task, entry: PoolObject) -> NodeSpace | None:
        """The node to copy from: the named one while it has the object, else the one with the least to do."""
        ready = [self._nodes[name] for name in entry.replicas if self._nodes[name].ready]
        return min(ready, key=lambda node: (node.name != task.source, self._load(node.name).objects), default=None)

    def _load(self, name: str) -> _Load:
        return self._loads.setdefault(name, _Load())

    def _must_ask(self, task: Task, now: float) -> bool:
        """Looks after a running task; whether its node is to be asked again."""
        copying = task.copying
        assert copying is not None  # it runs
        if self._index.readable(task.key) is not copying.entry:
            self._give_up(task)
            self._end(task, TaskState.FAILED, ObjectNotFound.code)
        elif self._is_lost(copying) or copying.source.name not in copying.entry.replicas:
            self._again(task, NodeNotFound.code, now)
        elif now >= task.since + TASK_DEADLINE_S:
            self._give_up(task)
            self._end(task, TaskState.FAILED, DeadlineExceeded.code)
        elif now >= copying.ask_at:
            copying.ask_at = now + ANSWER_S
            return True
        return False

    def _is_lost(self, copying: _Copying) -> bool:
        """Whether the target, as it was when it was asked, is gone, and its space with it."""
        return self._nodes.get(copying.target.name) is not copying.target

    def _arrived(self, task: Task, copying: _Copying, now: float) -> None:
        """The target has it."""
        self._let_go(task)
        self._index.add_replica(copying.entry, copying.target.name, copying.extent)
        self._finish(task, copying.entry, task.source or copying.source.name, now)

    def _finish(self, task: Task, entry: PoolObject, source: str, now: float) -> None:
        """The target has the object; a move's source has it no more."""
        source = source or next((name for name in entry.replicas if name != task.target), "")
        if task.move and source in entry.replicas and source != task.target:
            self._drop_replica(entry, source, now)
        self._end(task, TaskState.DONE)

    def _again(self, task: Task, reason: str, now: float) -> None:
        """A pull came to nothing."""
        self._give_up(task)
        if task.attempts >= ATTEMPTS:
            self._end(task, TaskState.FAILED, reason)
        else:
            self._rest(task, reason, now)

    def _rest(self, task: Task, reason: str, now: float) -> None:
        task.state, task.reason = TaskState.PENDING, reason
        heapq.heappush(self._resting, (now + RETRY_S * max(1, task.attempts), task.task_id))

    def _give_up(self, task: Task) -> None:
        """Gives a pull's space back. The node clears it when the pull has ended there."""
        copying = task.copying
        if copying is None:
            return
        self._let_go(task)
        if not self._is_lost(copying):
            copying.target.give_up(copying.extent, 0.0, 0.0)

    def _let_go(self, task: Task) -> None:
        copying = task.copying
        assert copying is not None  # it runs
        task.copying = None
        del self._running[copying.pull_id]
        self._index.copy_ends(copying.entry)
        for node in (copying.source, copying.target):
            self._load(node.name).add(-1, copying.extent.length)

    def _end(self, task: Task, state: TaskState, reason: str = "") -> None:
        task.state, task.reason = state, reason
        del self._tasks[task.task_id]
        self._ways.discard((task.key, task.target))
        self._ended[task.task_id] = task
        if len(self._ended) > TASKS_KEPT:
            self._ended.popitem(last=False)
        if task.on_end is not None:
            task.on_end(task)


def _requests(tasks: Iterable[Task]) -> list[PullToNode]:
    """One request for each pair of nodes."""
    pairs: dict[tuple[str, str], list[_Copying]] = {}
    for task in tasks:
        if task.copying is not None:
            pairs.setdefault((task.copying.source.name, task.copying.target.name), []).append(task.copying)
    return [_request(pulls) for pulls in pairs.values()]


def _request(pulls: Sequence[_Copying]) -> PullToNode:
    source, target = pulls[0].source, pulls[0].target
    return PullToNode(target.name, target.incarnation, target.round, source.offer.read, [_described(x) for x in pulls])


def _described(copying: _Copying) -> Pull:
    entry = copying.entry
    return Pull(
        pull_id=copying.pull_id,
        key=entry.key,
        parent=entry.parent,
        allocation_id=entry.allocation_id,
        size_bytes=entry.size_bytes,
        checksum=entry.checksum,
        source_offset=entry.replicas[copying.source.name].offset,
        slot=copying.extent.slot,
        offset=copying.extent.offset,
    )
