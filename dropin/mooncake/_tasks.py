"""Copies and moves of objects between segments, under way in the background."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from mooncake._arguments import each, the_key, the_keys
from mooncake._codes import Code, code_of
from mooncake._link import Link
from mooncake._parallelism import ParallelismCalls
from mooncake._replicas import node_name
from mooncake_core.wire.messages.tasks import CopyObjects, QueryTasks, TaskReport, TasksStarted
from mooncake_core.wire.messages.tasks import TaskStatus as Copy

TaskId = tuple[int, int]
NO_TASK: TaskId = (0, 0)


class TaskStatus(enum.IntEnum):
    """How far a task has come."""

    PENDING = 0
    PROCESSING = 1
    FAILED = 2
    SUCCESS = 3


class TaskType(enum.IntEnum):
    """What a task does."""

    REPLICA_COPY = 0
    REPLICA_MOVE = 1


@dataclass(frozen=True)
class QueryTaskResponse:
    """A task, as the master knows it."""

    id: TaskId
    type: TaskType
    status: TaskStatus
    message: str
    created_at_ms_epoch: int = 0
    last_updated_at_ms_epoch: int = 0
    assigned_client: str = ""


class TaskCalls(ParallelismCalls):
    """A task's id is a pair, as upstream's are: the numbers of its first and its last copy at the master. Those between are
    known to the store that began it."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[TaskId, list[int]] = {}

    def create_copy_task(self, key: str, targets: Sequence[str]) -> tuple[TaskId, int]:
        """Has an object copied to other segments; (task, 0), or ((0, 0), code)."""
        return self._begin([CopyObjects(keys=[the_key(key)], target=node_name(target)) for target in targets])

    def create_move_task(self, key: str, source: str, target: str) -> tuple[TaskId, int]:
        """Has a replica moved to another segment; (task, 0), or ((0, 0), code)."""
        wanted = CopyObjects(keys=[the_key(key)], target=node_name(target), source=node_name(source), move=True)
        return self._begin([wanted])

    def query_task(self, task_id: TaskId) -> tuple[QueryTaskResponse | None, int]:
        """A task; (answer, 0), or (None, code)."""
        numbers = self._copies.get(task_id) or sorted(set(task_id))

        def work(link: Link) -> tuple[QueryTaskResponse | None, int]:
            copies = link.store.ask(QueryTasks(task_ids=numbers), TaskReport).tasks
            if not copies:
                return None, int(Code.TASK_NOT_FOUND)
            return _response(task_id, copies), int(Code.OK)

        return self._ask(work, lambda code: (None, code))

    def batch_replica_clear(self, keys: Sequence[str], segment_name: str = "") -> list[str]:
        """Removes objects, or what a segment and the SSD below it have of them, unless somebody reads them; the keys of which
        something went."""
        wanted = the_keys(keys)

        def work(link: Link) -> list[int]:
            refusals = link.store.remove_from(node_name(segment_name), wanted)
            return [code_of(refusal) for refusal in refusals]

        codes = self._ask(work, lambda code: each(code, wanted)) if segment_name else self.batch_remove(wanted)
        return [key for key, code in zip(wanted, codes, strict=True) if code == Code.OK]

    def get_offload_rpc_read_count(self) -> int:
        """Reads that another process's disk tier served for this store: there are none of that kind here."""
        return 0

    def _begin(self, wanted: Sequence[CopyObjects]) -> tuple[TaskId, int]:
        def work(link: Link) -> tuple[TaskId, int]:
            tenant = link.tenant
            asked = [link.store.ask(replace(message, tenant=tenant), TasksStarted) for message in wanted]
            started = [task for answer in asked for task in answer.tasks]
            refusals = [task.refusal for task in started if task.refusal]
            if refusals or not started:
                return NO_TASK, code_of(refusals[0]) if refusals else int(Code.INVALID_PARAMS)
            begun = (started[0].task_id, started[-1].task_id)
            if len(started) > 2:
                self._copies[begun] = [task.task_id for task in started]
            return begun, int(Code.OK)

        return self._ask(work, lambda code: (NO_TASK, code))


def _response(task_id: TaskId, copies: Sequence[Copy]) -> QueryTaskResponse:
    """Several copies are done when all are, and failed when one is."""
    states = {copy.state for copy in copies}
    if states & {"failed", "cancelled"}:
        status = TaskStatus.FAILED
    elif states == {"done"}:
        status = TaskStatus.SUCCESS
    else:
        status = TaskStatus.PENDING if states == {"pending"} else TaskStatus.PROCESSING
    now_ms = time.time_ns() // 1_000_000
    return QueryTaskResponse(
        id=task_id,
        type=TaskType.REPLICA_MOVE if copies[0].move else TaskType.REPLICA_COPY,
        status=status,
        message=", ".join(sorted({copy.reason for copy in copies if copy.reason})),
        created_at_ms_epoch=now_ms - int(1000 * max(copy.age_s for copy in copies)),
        last_updated_at_ms_epoch=now_ms,
        assigned_client=copies[0].target,
    )
