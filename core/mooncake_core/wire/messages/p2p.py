"""What P2P stores ask the directory: who holds what of an object, and what to fetch next from whom."""

from __future__ import annotations

from msgspec import Struct


class Holder(Struct, frozen=True, kw_only=True, gc=False):
    """A process that has memory for an object, all of it or a part that grows."""

    endpoint: str
    """Its name."""
    incarnation: int
    spans: list[tuple[int, int]]
    """(address, length) of the object's bytes there, in order."""


class PublishReplica(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """I hold all of this object. Answered with Done; object_exists where the name means other bytes."""

    name: str
    holder: Holder
    shard_bytes: int
    checksums: list[int]
    """xxh3-64 of each shard."""


class BeginPull(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """I have memory for this object, and am going to fetch it; others may fetch from me what I say is there."""

    name: str
    holder: Holder


class PullBegun(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """How the object is cut."""

    size_bytes: int
    shard_bytes: int
    checksums: list[int]


class FailedShard(Struct, frozen=True, kw_only=True, gc=False):
    """A fetch that failed."""

    shard: int
    source: str
    """The endpoint."""
    is_gone: bool
    """It holds no such bytes any more, whoever asks; otherwise only this puller leaves it alone for a while."""


class NextShard(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """These shards came, those did not; what am I to fetch now?"""

    name: str
    endpoint: str
    done: list[int] = []
    failed: list[FailedShard] = []


class ShardTask(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    """Fetch `shard` from `source`. Without a source: ask again in `wait_s`; or all is there (`is_whole`) or on its way to you
    already; or nobody has what you lack (`is_lost`)."""

    shard: int = -1
    source: Holder | None = None
    wait_s: float = 0.0
    is_whole: bool = False
    is_lost: bool = False


class WithdrawReplica(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """I hold nothing of this object any more. Answered with Done, also where nothing was known."""

    name: str
    endpoint: str


class ListReplicas(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """Which objects are there, that begin with this?"""

    prefix: str = ""


class ReplicaDescription(Struct, frozen=True, kw_only=True, gc=False):
    """One object."""

    name: str
    size_bytes: int
    shard_bytes: int
    shards_held: dict[str, int]
    """Endpoint → how many shards of it are there."""


class ReplicaList(Struct, frozen=True, tag=True, kw_only=True, gc=False):
    """By name."""

    objects: list[ReplicaDescription]
