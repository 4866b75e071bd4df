"""Registering objects, and getting replicas of them from whoever has one.

    with P2PStore("10.0.0.1") as trainer:                                  # trainer.directory is to be told to the others
        trainer.register("checkpoint-7", weights)

    with P2PStore("10.0.0.2", directory="10.0.0.1:41234") as server:       # on any number of hosts at once
        server.get_replica("checkpoint-7", memory)

One store of them is the directory, which knows who holds what; bytes never pass through it. While it is gone nothing new can be
registered or fetched, and it does not come back with what it knew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Unpack

from mooncake_core.errors import InvalidRequest, MooncakeError, ObjectExists, ObjectNotFound
from mooncake_core.p2p.directory import Answer, Directory, Question
from mooncake_core.p2p.parts import pieces_of, shard_span
from mooncake_core.p2p.pull import ASK_S, Pull, checksum_of
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.endpoint import Endpoint
from mooncake_core.transfer.memory import Memory, parts_of, view_of_host_memory
from mooncake_core.transfer.options import PathOptions
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.p2p import (
    BeginPull,
    Holder,
    ListReplicas,
    NextShard,
    PublishReplica,
    PullBegun,
    ReplicaDescription,
    ReplicaList,
    WithdrawReplica,
)
from mooncake_core.wire.server import Call, Handler

SHARD_BYTES: Final = 16 << 20
PULL_S: Final = 600.0
NUM_THREADS: Final = 4


class _Held(NamedTuple):
    """An object's memory in this process."""

    views: list[memoryview]
    registered: list[int]
    """Addresses that were registered for it."""


class P2PStore:
    """All methods may be called from any thread. An object's memory must not be written to while it is registered: who fetches
    it then gets a checksum that is wrong, and looks for another source."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        directory: str | None = None,
        port: int = 0,
        key: ClusterKey | None = None,
        insecure: bool = False,
        host_id: str | None = None,
        **paths: Unpack[PathOptions],
    ) -> None:
        """Listens at `host`, the address by which others reach it. `directory`: the `directory` of the store that is it; None:
        this one. The others as for Endpoint.

        Raises: as Endpoint.
        """
        handlers = _handlers(Directory()) if directory is None else {}
        self._endpoint = Endpoint(
            host,
            port=port,
            key=key,
            insecure=insecure,
            host_id=host_id,
            handlers=handlers,
            **paths,
        )
        self.directory = directory or self._endpoint.name
        """What the others are to be given."""
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    @property
    def name(self) -> str:
        """`host:port` of this store."""
        return self._endpoint.name

    def allocate(self, num_bytes: int) -> SharedMemory:
        """Memory (`.view`) that processes of this host fetch from without a socket; it ends with the store."""
        return self._endpoint.allocate_memory(num_bytes)

    def register(self, name: str, memory: Memory | Sequence[Memory], *, shard_bytes: int = SHARD_BYTES) -> None:
        """Lets others fetch memory, or several one after the other, as the object `name`.

        Raises:
            ObjectExists: the name means other bytes, or this store has it already.
            OutOfRange: of memory, as Endpoint.register_memory.
            WireError: the directory cannot be asked.
        """
        if shard_bytes <= 0:
            raise InvalidRequest(f"expected shards of at least one byte, got {shard_bytes}")
        held = self._hold(name, memory)
        try:
            size = sum(view.nbytes for view in held.views)
            shards = [shard_span(shard, shard_bytes, size) for shard in range(-(-size // shard_bytes))]
            checksums = [checksum_of(pieces_of(held.views, shard)) for shard in shards]
            message = PublishReplica(name=name, holder=self._holder(held), shard_bytes=shard_bytes, checksums=checksums)
            self._endpoint.ask(self.directory, message, Done, timeout_s=ASK_S)
        except BaseException:
            self._let_go(name)
            raise

    def get_replica(
        self,
        name: str,
        memory: Memory | Sequence[Memory],
        *,
        num_threads: int = NUM_THREADS,
        timeout_s: float = PULL_S,
    ) -> None:
        """Fetches an object into memory of its size, from all who have parts of it. From then on this store is a source of it;
        of its shards already while they come.

        Raises:
            ObjectNotFound: nobody holds it.
            ObjectExists: this store has it already.
            InvalidRequest: the memory is of another size.
            DeadlineExceeded: it has not come in time.
            TransferError: nobody has a part of it any more; names the last failure.
            WireError: the directory cannot be asked.
        """
        held = self._hold(name, memory)
        try:
            begin = BeginPull(name=name, holder=self._holder(held))
            begun = self._endpoint.ask(self.directory, begin, PullBegun, timeout_s=ASK_S)
            until = time.monotonic() + timeout_s
            Pull(self._endpoint, self.directory, name, held.views, begun, until).run(num_threads)
        except BaseException:
            self._withdraw(name)
            self._let_go(name)
            raise

    def delete_replica(self, name: str) -> None:
        """Is no source of an object any more; when it returns, nobody reads the memory. The bytes stay where they are.

        Raises:
            ObjectNotFound: this store does not hold it.
        """
        if name not in self._held:
            raise ObjectNotFound(f"{self.name} does not hold {name}")
        self._withdraw(name)
        self._let_go(name)

    def list(self, prefix: str = "") -> list[ReplicaDescription]:
        """What is held by anybody, by name."""
        message = ListReplicas(prefix=prefix)
        return self._endpoint.ask(self.directory, message, ReplicaList, timeout_s=ASK_S).objects

    def size_bytes(self, name: str) -> int:
        """Of an object.

        Raises:
            ObjectNotFound: nobody holds it.
        """
        for found in self.list(name):
            if found.name == name:
                return found.size_bytes
        raise ObjectNotFound(f"nobody holds {name}")

    def close(self) -> None:
        """Is no source of anything any more, and ends. Idempotent."""
        for name in list(self._held):
            self._withdraw(name)
        self._endpoint.close()
        self._held.clear()

    def __enter__(self) -> P2PStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hold(self, name: str, memory: Memory | Sequence[Memory]) -> _Held:
        """Makes memory reachable that is not yet."""
        held = _Held([], [])
        with self._lock:
            if name in self._held:
                raise ObjectExists(f"{self.name} has {name} already: delete_replica first")
            self._held[name] = held
        try:
            for part in parts_of(memory):
                view = view_of_host_memory(part)
                if not self._endpoint.is_registered(view):
                    held.registered.append(self._endpoint.register_memory(part, writable=False))
                held.views.append(view)
            if not held.views:
                raise InvalidRequest(f"{name}: expected memory, got none")
        except BaseException:
            self._let_go(name)
            raise
        return held

    def _let_go(self, name: str) -> None:
        with self._lock:
            held = self._held.pop(name, None)
        for address in held.registered if held else ():
            self._endpoint.unregister_memory(address)

    def _holder(self, held: _Held) -> Holder:
        return Holder(
            endpoint=self.name,
            incarnation=self._endpoint.incarnation,
            spans=[(address_of(view), view.nbytes) for view in held.views],
        )

    def _withdraw(self, name: str) -> None:
        """Sends nobody here any more. Where the directory is gone, nobody is sent anyway."""
        try:
            message = WithdrawReplica(name=name, endpoint=self.name)
            self._endpoint.ask(self.directory, message, Done, timeout_s=ASK_S)
        except MooncakeError:
            return


def _handlers(directory: Directory) -> Mapping[type, Handler]:
    def handle(question: Question, call: Call) -> Any:
        answer: Answer = directory.handle(question, time.monotonic())
        return answer

    return dict.fromkeys((PublishReplica, BeginPull, NextShard, WithdrawReplica, ListReplicas), handle)
