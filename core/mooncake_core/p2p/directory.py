"""Who holds which shards of which object, and who is to fetch what from whom next. Pure.

Whoever fetches an object becomes a source of it, shard by shard. Pullers that begin together are sent to different shards, so
that each soon has what the others lack; and no source serves more than a few at once: who would wait for one finds another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, assert_never

from mooncake_core.errors import InvalidRequest, ObjectExists, ObjectNotFound
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.p2p import (
    BeginPull,
    FailedShard,
    Holder,
    ListReplicas,
    NextShard,
    PublishReplica,
    PullBegun,
    ReplicaDescription,
    ReplicaList,
    ShardTask,
    WithdrawReplica,
)

MOST_UPLOADS: Final = 4
"""Of one source at once."""
WAIT_S: Final = 0.01
AVOID_S: Final = 2.0
"""So long a puller leaves a source alone that it could not fetch from."""
MOST_FAILURES: Final = 3
"""One after the other, and the puller gives the source up."""
SILENT_S: Final = 30.0
"""A puller that has not asked for so long fetches nothing any more."""

Question = PublishReplica | BeginPull | NextShard | WithdrawReplica | ListReplicas
Answer = Done | PullBegun | ShardTask | ReplicaList


@dataclass(slots=True)
class _Replica:
    """A holder's part of an object."""

    holder: Holder
    shards: set[int]
    first: int = 0
    """Where it begins to fetch."""
    under_way: dict[int, str] = field(default_factory=dict)
    """Shard → endpoint that it is fetched from."""
    avoided: dict[str, float] = field(default_factory=dict)
    """Endpoint → until when."""
    failures: dict[str, int] = field(default_factory=dict)
    """Endpoint → how many fetches failed since one went well."""
    heard_s: float = 0.0

    def has_given_up(self, source: _Replica) -> bool:
        """Whether it looks for others only."""
        return self.failures.get(source.holder.endpoint, 0) >= MOST_FAILURES


@dataclass(slots=True)
class _Object:
    size_bytes: int
    shard_bytes: int
    checksums: list[int]
    replicas: dict[str, _Replica] = field(default_factory=dict)
    num_pullers: int = 0
    """That ever began."""


class Directory:
    """Answers what P2P stores ask; `now` in seconds of any clock."""

    def __init__(self) -> None:
        self._objects: dict[str, _Object] = {}

    def handle(self, question: Question, now: float) -> Answer:
        """The answer.

        Raises:
            ObjectNotFound, ObjectExists: of the name.
            InvalidRequest: sizes do not fit together.
        """
        match question:
            case PublishReplica():
                self._publish(question)
                return Done()
            case BeginPull():
                return self._begin(question, now)
            case NextShard():
                return self._next(question, now)
            case WithdrawReplica():
                self._withdraw(question.name, question.endpoint)
                return Done()
            case ListReplicas():
                return self._list(question.prefix)
            case _:
                assert_never(question)

    def _publish(self, message: PublishReplica) -> None:
        size_bytes = _size_of(message.holder)
        num_shards = -(-size_bytes // message.shard_bytes) if message.shard_bytes > 0 else 0
        if num_shards == 0 or len(message.checksums) != num_shards:
            raise InvalidRequest(
                f"{message.name}: expected a checksum for each shard of {message.shard_bytes} bytes of {size_bytes}, got "
                f"{len(message.checksums)}"
            )
        found = self._objects.get(message.name)
        if found is None:
            found = self._objects[message.name] = _Object(size_bytes, message.shard_bytes, message.checksums)
        elif (found.size_bytes, found.shard_bytes, found.checksums) != (
            size_bytes,
            message.shard_bytes,
            message.checksums,
        ):
            raise ObjectExists(
                f"{message.name} is the name of other bytes: delete its replicas first, or use another name"
            )
        found.replicas[message.holder.endpoint] = _Replica(message.holder, set(range(num_shards)))

    def _begin(self, message: BeginPull, now: float) -> PullBegun:
        found = self._object(message.name)
        room = _size_of(message.holder)
        if room != found.size_bytes:
            raise InvalidRequest(f"{message.name} has {found.size_bytes} bytes, the memory for it {room}")
        known = found.replicas.get(message.holder.endpoint)
        if known is not None and len(known.shards) == len(found.checksums):
            raise ObjectExists(f"{message.holder.endpoint} has {message.name} already")
        replica = _Replica(message.holder, set(), heard_s=now)
        replica.first = _spread(found.num_pullers, len(found.checksums))
        found.num_pullers += 1
        found.replicas[message.holder.endpoint] = replica
        return PullBegun(size_bytes=found.size_bytes, shard_bytes=found.shard_bytes, checksums=found.checksums)

    def _next(self, message: NextShard, now: float) -> ShardTask:
        found = self._object(message.name)
        puller = found.replicas.get(message.endpoint)
        if puller is None:
            raise ObjectNotFound(f"{message.endpoint} does not fetch {message.name}: begin anew")
        puller.heard_s = now
        for shard in message.done:
            puller.failures.pop(puller.under_way.pop(shard, ""), None)
            puller.shards.add(shard)
        for failure in message.failed:
            self._failed(found, puller, failure, now)
        lacking = [shard for shard in range(len(found.checksums)) if shard not in puller.shards]
        wanted = [shard for shard in lacking if shard not in puller.under_way]
        if not wanted:
            return ShardTask(is_whole=True)
        return self._choose(found, puller, wanted, now)

    def _choose(self, found: _Object, puller: _Replica, wanted: list[int], now: float) -> ShardTask:
        """The shard that fewest have or fetch, from the source that serves fewest."""
        uploads = _uploads(found, now)
        others = [
            replica for replica in found.replicas.values() if replica is not puller and not puller.has_given_up(replica)
        ]
        copies = {
            shard: sum(shard in replica.shards or shard in replica.under_way for replica in others) for shard in wanted
        }
        num_shards = len(found.checksums)
        for shard in sorted(wanted, key=lambda shard: (copies[shard], (shard - puller.first) % num_shards)):
            sources = [
                replica
                for replica in others
                if shard in replica.shards
                and puller.avoided.get(replica.holder.endpoint, 0.0) <= now
                and uploads.get(replica.holder.endpoint, 0) < MOST_UPLOADS
            ]
            if sources:
                source = min(sources, key=lambda replica: uploads.get(replica.holder.endpoint, 0)).holder
                puller.under_way[shard] = source.endpoint
                return ShardTask(shard=shard, source=source)
        is_lost = any(
            not any(shard in replica.shards or shard in replica.under_way for replica in others) for shard in wanted
        )
        return ShardTask(is_lost=True) if is_lost else ShardTask(wait_s=WAIT_S)

    def _failed(self, found: _Object, puller: _Replica, failure: FailedShard, now: float) -> None:
        puller.under_way.pop(failure.shard, None)
        puller.avoided[failure.source] = now + AVOID_S
        puller.failures[failure.source] = puller.failures.get(failure.source, 0) + 1
        source = found.replicas.get(failure.source)
        if failure.is_gone and source is not None:
            source.shards.discard(failure.shard)

    def _withdraw(self, name: str, endpoint: str) -> None:
        found = self._objects.get(name)
        if found is None:
            return
        found.replicas.pop(endpoint, None)
        if not any(replica.shards for replica in found.replicas.values()):
            del self._objects[name]

    def _list(self, prefix: str) -> ReplicaList:
        return ReplicaList(
            objects=[
                ReplicaDescription(
                    name=name,
                    size_bytes=found.size_bytes,
                    shard_bytes=found.shard_bytes,
                    shards_held={endpoint: len(replica.shards) for endpoint, replica in found.replicas.items()},
                )
                for name, found in sorted(self._objects.items())
                if name.startswith(prefix)
            ]
        )

    def _object(self, name: str) -> _Object:
        try:
            return self._objects[name]
        except KeyError:
            raise ObjectNotFound(f"nobody holds {name}") from None


def _size_of(holder: Holder) -> int:
    return sum(length for _, length in holder.spans)


def _uploads(found: _Object, now: float) -> dict[str, int]:
    """How many fetch from each endpoint; those that fell silent do not."""
    uploads: dict[str, int] = {}
    for replica in found.replicas.values():
        if replica.under_way and now - replica.heard_s > SILENT_S:
            replica.under_way.clear()
        for endpoint in replica.under_way.values():
            uploads[endpoint] = uploads.get(endpoint, 0) + 1
    return uploads


def _spread(number: int, num_shards: int) -> int:
    """Where the number-th puller begins: 0, 1/2, 1/4, 3/4, 1/8, ... of the object, so that any few of them are far apart."""
    share, step = 0.0, 0.5
    while number:
        share += step * (number & 1)
        number >>= 1
        step /= 2
    return int(share * num_shards)
