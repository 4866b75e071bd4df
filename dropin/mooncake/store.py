"""`mooncake.store`, as engines import it: upstream's class and its companions, served by mooncake_core."""

from __future__ import annotations

import mooncake._installed  # noqa: F401
from mooncake._memory import BufferHandle
from mooncake._memory import HostMemory as MooncakeHostMemAllocator
from mooncake._numa import bind_to_numa_node
from mooncake._parallelism import ParallelAxis, ReadTarget, TensorParallelism, WriterPartition
from mooncake._replicas import (
    Descriptor,
    DiskDescriptor,
    MemoryDescriptor,
    ObjectDataType,
    ReplicaDescriptor,
    ReplicaStatus,
    ReplicateConfig,
    SoftPinAction,
)
from mooncake._tasks import QueryTaskResponse, TaskCalls, TaskStatus, TaskType
from mooncake.buffer_pool import BufferLease, BufferPool, RegisteredBufferLease, RegisteredBufferPool


class MooncakeDistributedStore(TaskCalls):
    """A client of the pool. Answers are numbers, 0 or bytes on success and a negative code (`mooncake._codes.Code`) on
    failure; lists answer per key. May be called from many threads, and gives the interpreter to others while bytes move."""


__all__ = [
    "BufferHandle",
    "BufferLease",
    "BufferPool",
    "Descriptor",
    "DiskDescriptor",
    "MemoryDescriptor",
    "MooncakeDistributedStore",
    "MooncakeHostMemAllocator",
    "ObjectDataType",
    "ParallelAxis",
    "QueryTaskResponse",
    "ReadTarget",
    "RegisteredBufferLease",
    "RegisteredBufferPool",
    "ReplicaDescriptor",
    "ReplicaStatus",
    "ReplicateConfig",
    "SoftPinAction",
    "TaskStatus",
    "TaskType",
    "TensorParallelism",
    "WriterPartition",
    "bind_to_numa_node",
]
