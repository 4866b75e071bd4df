"""Copies and moves of objects between segments, under way in the background."""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mooncake._arguments import the_keys
from mooncake._codes import Code
from mooncake._parallelism import ParallelismCalls
from mooncake._replicas import ReplicaDescriptor, node_name

_log = logging.getLogger("mooncake.store")

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
    """Not served yet by this project's master."""

    def create_copy_task(self, key: str, targets: Sequence[str]) -> tuple[TaskId, int]:
        """Has an object copied to other segments; (task, 0), or ((0, 0), code)."""
        _log.error("create_copy_task: copies on demand are not served yet")
        return NO_TASK, int(Code.INVALID_PARAMS)

    def create_move_task(self, key: str, source: str, target: str) -> tuple[TaskId, int]:
        """Has a replica moved to another segment; (task, 0), or ((0, 0), code)."""
        _log.error("create_move_task: moves on demand are not served yet")
        return NO_TASK, int(Code.INVALID_PARAMS)

    def query_task(self, task_id: TaskId) -> tuple[QueryTaskResponse | None, int]:
        """A task; (answer, 0), or (None, code)."""
        return None, int(Code.TASK_NOT_FOUND)

    def batch_replica_clear(self, keys: Sequence[str], segment_name: str = "") -> list[str]:
        """Removes objects, or with a segment those that lie there alone, unless somebody reads them; the keys of those that
        went."""
        wanted = the_keys(keys)
        if segment_name:
            node = node_name(segment_name)
            places = self.batch_get_replica_desc(wanted)
            wanted = [key for key in wanted if _nodes(places.get(key, [])) == {node}]
        return [key for key, code in zip(wanted, self.batch_remove(wanted), strict=True) if code == Code.OK]

    def get_offload_rpc_read_count(self) -> int:
        """Reads that another process's disk tier served for this store: there are none of that kind here."""
        return 0


def _nodes(places: Sequence[ReplicaDescriptor]) -> set[str]:
    return {node_name(place.get_memory_descriptor().buffer_descriptor.transport_endpoint) for place in places}
