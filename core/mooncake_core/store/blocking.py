"""The pool for programs without an event loop: blocking calls from any thread, which that thread carries out itself."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from mooncake_core.store.calling_thread import ThreadCarrier, run
from mooncake_core.store.checksums import Choice
from mooncake_core.store.client import PLAIN, Pieces, PutObject, PutOptions, StoreClient
from mooncake_core.store.leases import Leases
from mooncake_core.store.putting import Putting
from mooncake_core.store.reading import Cut, Destination
from mooncake_core.store.sessions import GetSession
from mooncake_core.store.tenants import DEFAULT_TENANT
from mooncake_core.transfer.contract import TlsFiles
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.auth import ClusterKey
from mooncake_core.wire.blocking import BlockingClient
from mooncake_core.wire.client import Client
from mooncake_core.wire.loop_thread import LoopThread
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.objects import ObjectDescription
from mooncake_core.wire.messages.pool import NewObject

TIMEOUT_S: Final = 30.0
RENEW_S: Final = 1.0
"""A session's lease that ends sooner is renewed before it is read under."""

M = TypeVar("M")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How a program reaches the pool."""

    master_address: str
    name: str
    """For logs, at both ends."""
    host_id: str
    tenant: str = DEFAULT_TENANT
    transports: Sequence[str] = ("shm", "tcp")
    optional: Collection[str] = ()
    """Those of them that this machine may do without."""
    key: ClusterKey | None = None
    tls: TlsFiles | None = None
    """Where the cluster's data connections over tcp are encrypted."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of networks and RDMA devices, beside 1 for the others."""
    checksum: Choice = "auto"
    timeout_s: float = TIMEOUT_S
    busy_poll_s: float = 0.0
    """How long to look for an answer before sleeping until it comes."""


class BlockingStore:
    """Puts and gets batches of objects. All methods may be called from any thread, and raise MooncakeError where the master
    cannot be asked; a full pool or a dead node is a result."""

    def __init__(self, settings: StoreSettings) -> None:
        self._timeout_s = settings.timeout_s
        self._engine = TransferEngine(
            owner=settings.name,
            host_id=settings.host_id,
            incarnation=secrets.randbits(63),
            transports=settings.transports,
            optional=settings.optional,
            secret=settings.key.secret if settings.key else None,
            tls=settings.tls,
            weights=settings.weights,
            timeout_s=settings.timeout_s,
            busy_poll_s=settings.busy_poll_s,
        )
        self._loop = LoopThread(settings.name)
        self._master = Client(settings.master_address, name=settings.name, key=settings.key)
        self._direct = BlockingClient(self._master, self._loop, settings.busy_poll_s)
        self._carrier = ThreadCarrier(self._direct, self._engine)
        self._client = StoreClient(
            self._carrier.master,
            engine=self._engine,
            checksum=settings.checksum,
            tenant=settings.tenant,
            carrier=self._carrier,
            leases=Leases(),
        )

    def put(self, objects: Sequence[PutObject], *, replicas: int = 1, options: PutOptions = PLAIN) -> list[str]:
        """As StoreClient.put: one error code each, empty for success."""
        return run(self._client.put(objects, timeout_s=self._timeout_s, replicas=replicas, options=options))

    def get(self, keys: Sequence[str], destination: Destination) -> list[str]:
        """Reads whole objects to where `destination` says; one error code each, empty for success (object_not_found;
        out_of_range where there is no destination; transfer where no replica could be read)."""
        return run(self._client.get_into(keys, destination, timeout_s=self._timeout_s))

    def read_ranges(self, keys: Sequence[str], cuts: Sequence[Sequence[Cut]]) -> list[str]:
        """Reads (offset, pieces) of each object; one error code each, empty for success (object_not_found; out_of_range where
        an object is shorter; transfer)."""
        return run(self._client.get_ranges(keys, cuts, timeout_s=self._timeout_s))

    def describe(self, keys: Sequence[str]) -> list[ObjectDescription | None]:
        """Size and replicas of each object, None for a miss. Takes no lease."""
        return run(self._client.describe(keys, timeout_s=self._timeout_s))

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """Which objects can be read now. Takes no lease."""
        return run(self._client.exists(keys, timeout_s=self._timeout_s))

    def remove(self, keys: Sequence[str], *, force: bool = False) -> list[str]:
        """Removes objects; one error code each, empty for success."""
        return run(self._client.remove(keys, timeout_s=self._timeout_s, force=force))

    def remove_from(self, node: str, keys: Sequence[str]) -> list[str]:
        """Removes what a node has of objects; one error code each, empty for success. One that lies nowhere else goes."""
        return run(self._client.remove_from(node, keys, timeout_s=self._timeout_s))

    def remove_matching(self, pattern: str, *, force: bool = False) -> int:
        """Removes the objects in whose keys the regular expression is found; returns how many went.

        Raises:
            InvalidRequest: the pattern is none.
        """
        work = self._client.remove_matching(pattern, timeout_s=self._timeout_s, force=force)
        return run(work).removed

    def remove_all(self, *, force: bool = False) -> int:
        """Removes every object; returns how many went."""
        return run(self._client.remove_all(timeout_s=self._timeout_s, force=force)).removed

    def begin_put(self, wanted: Sequence[NewObject], *, replicas: int = 1, options: PutOptions = PLAIN) -> OpenPut:
        """Space for objects that are written range by range; each must be ended."""
        putting = run(self._client.begin_put(wanted, timeout_s=self._timeout_s, replicas=replicas, options=options))
        return OpenPut(putting, self._timeout_s)

    def begin_get(self, keys: Sequence[str]) -> OpenGet:
        """Objects that are read range by range under a lease that is renewed."""
        session = run(self._client.begin_get_session(keys, timeout_s=self._timeout_s))
        return OpenGet(session, self._timeout_s)

    def ask(self, message: Message, reply_type: type[M], *, timeout_s: float | None = None) -> M:
        """Any question to the master."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return self._direct.call(message, reply_type, timeout_s=limit_s)

    def close(self) -> None:
        """Ends calls under way with an error, then everything else. Idempotent."""
        self._engine.close()  # first: a cancelled call waits for its transfers
        self._carrier.close()
        self._direct.close()
        self._loop.close(self._master.close)


class OpenPut:
    """Objects being written range by range. Any thread; one call at a time goes on."""

    def __init__(self, putting: Putting, timeout_s: float) -> None:
        self._putting = putting
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self.refusals = ["" if index in putting.granted else code for index, code in enumerate(putting.codes)]
        """Why an object has no space; empty for those that can be written."""

    def write(self, parts: Sequence[tuple[int, int, Pieces]]) -> set[int]:
        """Writes (object, offset, pieces); which objects can still become whole.

        Raises:
            InvalidRequest: a part lies outside of its object; nothing was written.
        """
        with self._lock:
            run(self._putting.write_at(parts))
            return set(self._putting.granted)

    def end(self, indexes: Sequence[int], *, commit: bool) -> list[str]:
        """Makes objects readable that are written whole, or gives their space back; one error code each."""
        with self._lock:
            run(self._putting.end_some(indexes, timeout_s=self._timeout_s, commit=commit))
        codes = self._putting.codes
        return [codes[index] for index in indexes]


class OpenGet:
    """Objects being read range by range. Any thread; one call at a time goes on. Nothing has to end it."""

    def __init__(self, session: GetSession, timeout_s: float) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def size_bytes(self, index: int) -> int | None:
        """None for an object that cannot be read."""
        return self._session.size_bytes(index)

    def read(self, cuts: Mapping[int, Sequence[Cut]]) -> dict[int, bool]:
        """Reads (offset, pieces) of objects; whether all of an object's came.

        Raises:
            InvalidRequest: a part lies outside of its object; nothing was read.
        """
        with self._lock:
            return run(self._read(cuts))

    async def _read(self, cuts: Mapping[int, Sequence[Cut]]) -> dict[int, bool]:
        if self._session.deadline - time.monotonic() < RENEW_S:
            await self._session.renew(timeout_s=self._timeout_s)
        return await self._session.read(cuts, timeout_s=self._timeout_s)
