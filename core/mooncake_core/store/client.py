"""The client: puts and gets batches of objects, moving their bytes straight between the caller's memory and the nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from mooncake_core.errors import MooncakeError, NoSpace
from mooncake_core.store.asking import Asking
from mooncake_core.store.checksums import Choice
from mooncake_core.store.putting import Putting
from mooncake_core.store.reading import Cut, Reading
from mooncake_core.store.sessions import GetSession
from mooncake_core.store.tenants import DEFAULT_TENANT, qualified
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.slices import total_bytes
from mooncake_core.wire.client import Client
from mooncake_core.wire.messages.pool import Get, Got, NewObject, PutStart, PutStarted

Pieces = Sequence[memoryview]


@dataclass(frozen=True, slots=True, kw_only=True)
class PutObject:
    """An object to put: the bytes of its pieces in order. They must not change until `put` returns."""

    key: str
    pieces: Pieces
    parent: str = ""
    group: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOptions:
    """What a put may ask for beside replicas and the preferred node; see the message PutStart."""

    preferred_nodes: Sequence[str] = ()
    same_node: bool = False
    upsert: bool = False
    hard_pin: bool | None = None
    soft_pin_s: float | None = None


PLAIN = PutOptions()


class StoreClient(Asking):
    """Reads and writes the pool. A full pool or a dead node is a result, not an exception; an unreachable master is one."""

    def __init__(
        self, master: Client, *, engine: TransferEngine, checksum: Choice = "auto", tenant: str = DEFAULT_TENANT
    ) -> None:
        super().__init__(master, tenant=tenant)
        self._engine = engine
        self._checksum = checksum

    async def put(
        self,
        objects: Sequence[PutObject],
        *,
        timeout_s: float,
        preferred_node: str = "",
        replicas: int = 1,
        options: PutOptions = PLAIN,
        wait_for_space_s: float = 0.0,
    ) -> list[str]:
        """Puts objects; one error code each, empty for success. `object_exists` means that it is, or soon will be, there.

        Where there is no space, but some is on its way to being free, those objects are tried again for `wait_for_space_s`.
        """
        codes = [NoSpace.code] * len(objects)
        until = time.monotonic() + wait_for_space_s
        while left := [index for index, code in enumerate(codes) if code == NoSpace.code]:
            wanted = [objects[index] for index in left]
            putting = await self._put(wanted, timeout_s, preferred_node, replicas, options)
            for index, code in zip(left, putting.codes, strict=True):
                codes[index] = code
            pause_s = putting.retry_after_s
            if pause_s is None or time.monotonic() + pause_s > until:
                break
            await asyncio.sleep(pause_s)
        return codes

    async def _put(
        self,
        objects: Sequence[PutObject],
        timeout_s: float,
        preferred_node: str,
        replicas: int,
        options: PutOptions,
    ) -> Putting:
        wanted = [
            NewObject(key=item.key, size_bytes=item.size_bytes, parent=item.parent, group=item.group)
            for item in objects
        ]
        putting = await self.begin_put(
            wanted, timeout_s=timeout_s, preferred_node=preferred_node, replicas=replicas, options=options
        )
        written = False
        try:
            await putting.write({index: item.pieces for index, item in enumerate(objects)})
            written = True
        finally:  # also when cancelled: the space must not wait for the writer's deadline
            await asyncio.shield(putting.end(timeout_s=timeout_s, commit=written))
        return putting

    async def begin_put(
        self,
        wanted: Sequence[NewObject],
        *,
        timeout_s: float,
        preferred_node: str = "",
        replicas: int = 1,
        options: PutOptions = PLAIN,
        writing_s: float | None = None,
    ) -> Putting:
        """Space for objects that are then written part by part; the puts' `end` must follow.

        timeout_s is for the master's answer and for each write; writing_s, else timeout_s, for all writes together, which the
        master's own deadline for writers bounds in any case.
        """
        sent = time.monotonic()
        message = self._put_start(wanted, preferred_node, replicas, options)
        stored = self._as_stored(wanted)
        asked = asyncio.ensure_future(self._master.call(message, PutStarted, timeout_s=timeout_s))
        try:
            started = await asyncio.shield(asked)
        except asyncio.CancelledError:  # the master may have granted: the space must not wait for the writer's deadline
            with contextlib.suppress(MooncakeError):
                await Putting(self._master, self._engine, stored, await asked, sent, timeout_s).end(
                    timeout_s=timeout_s, commit=False
                )
            raise
        deadline = sent + min(timeout_s if writing_s is None else writing_s, started.writer_deadline_s)
        return Putting(self._master, self._engine, stored, started, deadline, timeout_s)

    async def get(self, keys: Sequence[str], destinations: Sequence[Pieces], *, timeout_s: float) -> list[bool]:
        """Reads objects into the destinations; whether each is there whole. Never leaves wrong bytes in one that is True."""
        reading = await self.begin_get(keys, timeout_s=timeout_s)
        sizes = [total_bytes(pieces) for pieces in destinations]
        reading.drop([index for index, size in enumerate(sizes) if reading.size_bytes(index) != size])
        parts = dict(enumerate(destinations))
        while parts:
            await reading.read(parts)
            parts = {index: destinations[index] for index in reading.damaged()}
        return reading.finish()

    async def read_ranges(self, keys: Sequence[str], cuts: Sequence[Sequence[Cut]], *, timeout_s: float) -> list[bool]:
        """Reads (offset, pieces) of each object; whether all of them came. An object too short for one counts as a miss.

        A part cannot be verified by the checksum of the whole: bytes damaged on the way, or where they lie, are not noticed.
        """
        reading = await self.begin_get(keys, timeout_s=timeout_s)
        reading.drop([index for index, wanted in enumerate(cuts) if not reading.fits(index, wanted)])
        read = await reading.read_ranges(dict(enumerate(cuts)), timeout_s=timeout_s)
        return [read[index] for index in range(len(keys))]

    async def begin_get(self, keys: Sequence[str], *, timeout_s: float) -> Reading:
        """Objects under a lease, to be read part by part."""
        sent = time.monotonic()
        got, lease_ends = await self.locate(keys, timeout_s=timeout_s)
        return Reading(self._engine, got, min(sent + timeout_s, lease_ends), checksum=self._checksum)

    async def begin_get_session(self, keys: Sequence[str], *, timeout_s: float) -> GetSession:
        """Objects under a lease that can be renewed, for reading ranges of them; timeout_s is for the master's answer."""
        got, deadline = await self.locate(keys, timeout_s=timeout_s)
        return GetSession(self, list(keys), Reading(self._engine, got, deadline, checksum=self._checksum))

    async def locate(self, keys: Sequence[str], *, timeout_s: float) -> tuple[Got, float]:
        """Where objects lie, and the time.monotonic() at which the lease on them ends."""
        sent = time.monotonic()
        got = await self._master.call(Get(keys=list(keys), tenant=self._tenant), Got, timeout_s=timeout_s)
        return got, sent + got.held_s + got.lease_s

    def _put_start(
        self, wanted: Sequence[NewObject], preferred_node: str, replicas: int, options: PutOptions
    ) -> PutStart:
        return PutStart(
            objects=list(wanted),
            replicas=replicas,
            preferred_node=preferred_node,
            preferred_nodes=list(options.preferred_nodes),
            same_node=options.same_node,
            upsert=options.upsert,
            hard_pin=options.hard_pin,
            soft_pin_s=options.soft_pin_s,
            tenant=self._tenant,
        )

    def _as_stored(self, wanted: Sequence[NewObject]) -> Sequence[NewObject]:
        """Named as in the objects' headers."""
        if self._tenant == DEFAULT_TENANT:
            return wanted
        keys = qualified(self._tenant, [new.key for new in wanted])
        parents = qualified(self._tenant, [new.parent for new in wanted])
        return [
            structs.replace(new, key=key, parent=parent) for new, key, parent in zip(wanted, keys, parents, strict=True)
        ]
