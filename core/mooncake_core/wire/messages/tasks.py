"""Copies and moves of objects between nodes, and draining: what operators ask, and what the master then asks of nodes."""

from __future__ import annotations

from msgspec import Struct

from mooncake_core.wire.messages.memory import SegmentDescriptor


class CopyObjects(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Wants a replica of each object on node `target`; answered at once with TasksStarted, the bytes move later.

    They come from `source`, or from any node that has them. With `move` the source's replica goes when the new one is there.
    """

    keys: list[str]
    target: str
    source: str = ""
    move: bool = False
    tenant: str = "default"


class ReplicateObjects(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Wants `replicas` copies of each of these objects, and of all whose keys begin with `prefix` where one is given, on
    nodes that the master chooses. Answered with TasksStarted."""

    replicas: int
    keys: list[str] = []
    prefix: str = ""
    tenant: str = "default"


class StartedTask(Struct, frozen=True, kw_only=True, gc=False):
    """One copy that was asked for. `refusal` is an error code, empty where there is a task."""

    key: str
    target: str = ""
    task_id: int = 0
    refusal: str = ""


class TasksStarted(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """What became of each copy that was asked for."""

    tasks: list[StartedTask]


class QueryTasks(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """How far are these tasks, or, where none is named, the newest `limit`?"""

    task_ids: list[int] = []
    limit: int = 100


class TaskStatus(Struct, frozen=True, kw_only=True, gc=False):
    """A copy or move."""

    task_id: int
    key: str
    source: str
    target: str
    move: bool
    state: str
    """pending, running, done, failed or cancelled."""
    reason: str = ""
    """Why it failed: an error code."""
    attempts: int = 0
    age_s: float = 0.0
    tenant: str = "default"


class TaskReport(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The tasks that are known of those asked for; finished ones are forgotten after some thousand others."""

    tasks: list[TaskStatus]
    pending: int
    running: int


class CancelTasks(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Ends these tasks. What they have copied so far goes; a task that is done stays so."""

    task_ids: list[int]


class TasksCancelled(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One error code per task, empty where it was cancelled (task_not_found: unknown, or ended before)."""

    refusals: list[str]


class DrainNode(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """No new objects on this node; those that are there go to others. What fits nowhere else stays, or with `force` goes.

    Answered with Done at once, or node_not_found; QueryDrains tells the progress.
    """

    name: str
    force: bool = False


class UndrainNode(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """The node takes new objects again. Answered with Done, or node_not_found where it does not drain."""

    name: str


class QueryDrains(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """How far is the draining of these nodes, or of all that drain?"""

    names: list[str] = []


class DrainStatus(Struct, frozen=True, kw_only=True, gc=False):
    """The progress of one node's draining."""

    name: str
    state: str
    """draining; stuck: what is left fits nowhere else now; drained: the process may be stopped and nothing is lost."""
    objects_left: int
    bytes_left: int
    """Space that is still in use, that of readers' leases included."""
    moved: int = 0
    released: int = 0
    """Replicas that went because another node has one."""
    dropped: int = 0
    """Objects that fitted nowhere else and were given up, as `force` allows."""
    stuck: int = 0
    """Objects that could not be moved."""
    reason: str = ""
    """Why the last one could not: an error code."""


class Drains(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One entry per node that drains."""

    drains: list[DrainStatus]


class EvictObjects(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Makes room on a node, in the order of its eviction policy, until `size_bytes` are given up; 0 for all that may go."""

    node: str
    size_bytes: int = 0


class Evicted(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """How much went. With `more` the master stopped to do other work: ask again."""

    objects: int
    size_bytes: int
    more: bool = False


OperatorQuestion = (
    CopyObjects | ReplicateObjects | QueryTasks | CancelTasks | DrainNode | UndrainNode | QueryDrains | EvictObjects
)


# Master to node.


class Pull(Struct, frozen=True, kw_only=True, gc=False):
    """One object to copy: its extent at the source, header included, and where the copy goes."""

    pull_id: int
    key: str
    parent: str
    allocation_id: int
    size_bytes: int
    checksum: int
    source_offset: int
    slot: int
    offset: int


class PullObjects(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Copy these objects from another node's segment into your own. Repeating it is harmless.

    `round` is that of the newest fence, `order` counts the master's orders about the node's slots: what a fence or a later
    ClearSlots has overtaken is refused, since its space may be somebody else's.
    """

    term: int
    round: int
    order: int
    source: SegmentDescriptor
    pulls: list[Pull]


class Pulled(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """One error code per object, empty where the node's directory has it now, committed and verified."""

    incarnation: int
    refusals: list[str]


class MarkDraining(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Remember that you are drained, or not any more, and tell each master that you join. Answered with Done."""

    term: int
    draining: bool
