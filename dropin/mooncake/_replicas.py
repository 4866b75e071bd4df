"""What a caller wants of an object's replicas, and what it is told about them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mooncake._arguments import without_effect
from mooncake_core.wire.messages.objects import ObjectDescription

SOFT_PIN_S: Final = 30 * 60.0
"""Upstream's default."""
LONGEST_NAME: Final = 64
FIRST_PORT: Final = 1024
"""A smaller number at the end of a node's name counts nodes."""


class SoftPinAction(enum.IntEnum):
    """What a put does with an object's soft pin."""

    PRESERVE = 0
    ENABLE = 1
    DISABLE = 2


class ObjectDataType(enum.IntEnum):
    """What an object is; kept by nobody here."""

    UNKNOWN = 0
    KVCACHE = 1
    TENSOR = 2
    WEIGHT = 3
    SAMPLE = 4
    ACTIVATION = 5
    GRADIENT = 6
    OPTIMIZER_STATE = 7
    METADATA = 8
    GENERAL = 9


class ReplicaStatus(enum.IntEnum):
    """How far a replica has come; only complete ones are ever described here."""

    UNDEFINED = 0
    INITIALIZED = 1
    PROCESSING = 2
    COMPLETE = 3
    REMOVED = 4
    FAILED = 5


@dataclass
class ReplicateConfig:
    """How an object is kept; the fields are upstream's."""

    replica_num: int = 1
    """Copies, on different nodes; fewer where there are fewer nodes with room."""
    with_soft_pin: bool = False
    soft_pin_action: SoftPinAction = SoftPinAction.PRESERVE
    soft_pin_ttl_ms: int | None = None
    with_hard_pin: bool = False
    preferred_segment: str = ""
    """Where the first replica goes if there is room: a store's `get_hostname()`, or a node's name."""
    preferred_segments: list[str] = field(default_factory=list)
    prefer_alloc_in_same_node: bool = False
    group_ids: list[str] | None = None
    data_type: int = ObjectDataType.UNKNOWN
    """Accepted."""
    nof_replica_num: int = 0
    """Accepted, as those below."""
    preferred_nof_segments: list[str] = field(default_factory=list)
    dfs_replica_num: int = 0

    def __setattr__(self, name: str, value: object) -> None:
        kinds = _KINDS.get(name)
        if kinds is not None and not isinstance(value, kinds):
            raise TypeError(f"ReplicateConfig.{name}: got {value!r}, which is of another type")
        if value and name in _WITHOUT_EFFECT:
            without_effect(f"ReplicateConfig.{name}", _WITHOUT_EFFECT[name])
        super().__setattr__(name, value)

    @property
    def soft_pin_s(self) -> float | None:
        """For how long the object is evicted last; None where it is not, or an upsert leaves it as it is."""
        if not self.with_soft_pin and self.soft_pin_action == SoftPinAction.PRESERVE:
            return None
        if self.soft_pin_action == SoftPinAction.DISABLE:
            return 0.0
        return SOFT_PIN_S if self.soft_pin_ttl_ms is None else self.soft_pin_ttl_ms / 1000


_KINDS: Final[dict[str, type | tuple[type, ...]]] = {
    "replica_num": int,
    "with_soft_pin": bool,
    "soft_pin_ttl_ms": (int, type(None)),
    "with_hard_pin": bool,
    "preferred_segment": str,
    "preferred_segments": list,
    "prefer_alloc_in_same_node": bool,
    "group_ids": (list, type(None)),
}
_WITHOUT_EFFECT: Final = {
    "data_type": "objects are kept alike, whatever they are",
    "nof_replica_num": "there are no NVMe-oF replicas here",
    "preferred_nof_segments": "there are no NVMe-oF replicas here",
    "dfs_replica_num": "there are no replicas on a distributed file system here",
}
DEFAULT: Final = ReplicateConfig()


def groups_fit(config: ReplicateConfig, keys: Sequence[str]) -> bool:
    """Whether a config names a group for each of the keys, or none at all."""
    return config.group_ids is None or len(config.group_ids) == len(keys)


def of_some(config: ReplicateConfig, places: Sequence[int]) -> ReplicateConfig:
    """The config for some of the objects that it was given for: groups go by place."""
    groups = config.group_ids
    return config if groups is None else replace(config, group_ids=[groups[place] for place in places])


def node_name(segment: str) -> str:
    """The node that contributes a segment: a store's `get_hostname()` in the letters of a name, and no longer than one."""
    return segment.lower().replace(":", "-").replace("_", "-")[-LONGEST_NAME:].strip("-.")


def segment_name(node: str) -> str:
    """What `get_hostname()` tells in the store that contributes this node; of other nodes their name."""
    host, _, port = node.rpartition("-")
    return f"{host}:{port}" if host and port.isdigit() and int(port) >= FIRST_PORT else node


@dataclass(frozen=True)
class Descriptor:
    """A range of a segment."""

    size: int
    buffer_address: int
    """An offset into the segment: addresses of other processes mean nothing here."""
    transport_endpoint: str


@dataclass(frozen=True)
class MemoryDescriptor:
    """A replica in DRAM."""

    buffer_descriptor: Descriptor


@dataclass(frozen=True)
class DiskDescriptor:
    """A replica in a file."""

    file_path: str
    object_size: int


@dataclass(frozen=True)
class LocalDiskDescriptor:
    """A replica on the SSD of one node, or in its object storage."""

    object_size: int
    transport_endpoint: str


@dataclass(frozen=True)
class ReplicaDescriptor:
    """Where one replica of an object lies."""

    status: ReplicaStatus
    place: MemoryDescriptor | LocalDiskDescriptor

    def is_memory_replica(self) -> bool:
        return isinstance(self.place, MemoryDescriptor)

    def is_disk_replica(self) -> bool:
        """On a file system that all clients share: never here."""
        return False

    def is_local_disk_replica(self) -> bool:
        return isinstance(self.place, LocalDiskDescriptor)

    def get_memory_descriptor(self) -> MemoryDescriptor:
        if isinstance(self.place, MemoryDescriptor):
            return self.place
        raise RuntimeError(
            "expected a replica in memory, this one is on a node's disk: ask get_local_disk_descriptor()"
        )

    def get_disk_descriptor(self) -> DiskDescriptor:
        raise RuntimeError(
            "expected a replica in a shared file, there are none here: ask is_memory_replica() what it is"
        )

    def get_local_disk_descriptor(self) -> LocalDiskDescriptor:
        if isinstance(self.place, LocalDiskDescriptor):
            return self.place
        raise RuntimeError("expected a replica on a node's disk, this one is in memory: ask get_memory_descriptor()")


def describe(found: ObjectDescription) -> Sequence[ReplicaDescriptor]:
    """The replicas of an object, those in memory first."""
    places: list[MemoryDescriptor | LocalDiskDescriptor] = [
        MemoryDescriptor(
            Descriptor(found.size_bytes, placement.offset + found.header_bytes, segment_name(placement.node))
        )
        for placement in found.replicas
    ]
    places += [LocalDiskDescriptor(found.size_bytes, segment_name(node)) for node in found.tiered_on]
    return [ReplicaDescriptor(ReplicaStatus.COMPLETE, place) for place in places]
