"""The client: puts and gets batches of objects, moving their bytes straight between the caller's memory and the nodes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from mooncake_core.errors import MooncakeError, NoSpace, OutOfRange, TransferError
from mooncake_core.store.asking import Asking
from mooncake_core.store.carrying import Asker, Carrier, LoopCarrier
from mooncake_core.store.checksums import Choice
from mooncake_core.store.leases import Leases
from mooncake_core.store.putting import Putting
from mooncake_core.store.reading import Cut, Destination, Reading
from mooncake_core.store.sessions import GetSession
from mooncake_core.store.tenants import DEFAULT_TENANT, qualified
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.transfer.slices import total_bytes
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


_OUTDATED: Final = (TransferError.code, OutOfRange.code)
"""What one that was put anew since its lease was taken can give cause for: its bytes lie elsewhere, and may be more."""


class StoreClient(Asking):
    """Reads and writes the pool. A full pool or a dead node is a result, not an exception; an unreachable master is one."""

    def __init__(
        self,
        master: Asker,
        *,
        engine: TransferEngine,
        checksum: Choice = "auto",
        tenant: str = DEFAULT_TENANT,
        carrier: Carrier | None = None,
        leases: Leases | None = None,
    ) -> None:
        """`carrier` does the work: a ThreadCarrier in the thread that runs the client's coroutines; by default the event loop.
        With `leases` whole objects and ranges are read without asking the master, as long as a lease on them lasts."""
        self._carrier: Carrier = LoopCarrier(master, engine) if carrier is None else carrier
        super().__init__(self._carrier.master, tenant=tenant)
        self._checksum = checksum
        self._leases = leases

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
            await self._carrier.sleep(pause_s)
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
            await putting.write_whole({index: item.pieces for index, item in enumerate(objects)})
            written = True
        finally:  # also when cancelled: the space must not wait for the writer's deadline
            await self._carrier.finish(putting.end(timeout_s=timeout_s, commit=written))
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
        started, interrupt = await self._carrier.call_surely(message, PutStarted, timeout_s=timeout_s)
        deadline = sent + min(timeout_s if writing_s is None else writing_s, started.writer_deadline_s)
        summed = self._checksum != "off"
        putting = Putting(self._carrier, stored, started, deadline, timeout_s, summed=summed)
        if interrupt is not None:  # the space must not wait for the writer's deadline
            with contextlib.suppress(MooncakeError):
                await putting.end(timeout_s=timeout_s, commit=False)
            raise interrupt
        return putting

    async def get(self, keys: Sequence[str], destinations: Sequence[Pieces], *, timeout_s: float) -> list[bool]:
        """Reads objects into the destinations; whether each is there whole. Never leaves wrong bytes in one that is True."""

        def exactly(index: int, size_bytes: int) -> Pieces | None:
            return destinations[index] if total_bytes(destinations[index]) == size_bytes else None

        return [not code for code in await self.get_into(keys, exactly, timeout_s=timeout_s)]

    async def get_into(self, keys: Sequence[str], destination: Destination, *, timeout_s: float) -> list[str]:
        """Reads whole objects to where `destination` says; one error code each, empty for success (object_not_found;
        out_of_range where there is no destination; transfer where no replica could be read)."""

        async def read(reading: Reading, places: Sequence[int]) -> list[str]:
            return await reading.read_whole(lambda index, size_bytes: destination(places[index], size_bytes))

        return await self._under_lease(keys, read, timeout_s)

    async def read_ranges(self, keys: Sequence[str], cuts: Sequence[Sequence[Cut]], *, timeout_s: float) -> list[bool]:
        """As `get_ranges`; whether all parts of each object came. An object too short for one counts as a miss."""
        return [not code for code in await self.get_ranges(keys, cuts, timeout_s=timeout_s)]

    async def get_ranges(self, keys: Sequence[str], cuts: Sequence[Sequence[Cut]], *, timeout_s: float) -> list[str]:
        """Reads (offset, pieces) of each object; one error code each, empty for success (object_not_found; out_of_range where
        an object is shorter; transfer).

        A part cannot be verified by the checksum of the whole: bytes damaged on the way, or where they lie, are not noticed.
        """

        async def read(reading: Reading, places: Sequence[int]) -> list[str]:
            return await reading.read_parts([cuts[place] for place in places], timeout_s=timeout_s)

        return await self._under_lease(keys, read, timeout_s)

    async def _under_lease(
        self, keys: Sequence[str], read: Callable[[Reading, Sequence[int]], Awaitable[list[str]]], timeout_s: float
    ) -> list[str]:
        """What `read` says of each object: read where it lay under a lease that is remembered; what cannot be read there, or
        where there is none, as the master says."""
        until = time.monotonic() + timeout_s
        left = list(range(len(keys)))
        codes = [TransferError.code] * len(keys)
        known = None if self._leases is None else self._leases.look(keys, time.monotonic())
        if known is not None:
            got, lease_ends = known
            deadline = min(until, lease_ends)
            codes = await read(Reading(self._carrier, got, deadline, checksum=self._checksum, watch=True), left)
            left = [index for index, code in enumerate(codes) if code in _OUTDATED]
        if left:
            reading = await self.begin_get(
                [keys[index] for index in left], timeout_s=max(0.0, until - time.monotonic())
            )
            for index, code in zip(left, await read(reading, left), strict=True):
                codes[index] = code
        return codes

    async def begin_get(self, keys: Sequence[str], *, timeout_s: float) -> Reading:
        """Objects under a lease, to be read part by part."""
        sent = time.monotonic()
        got, lease_ends = await self.locate(keys, timeout_s=timeout_s)
        if self._leases is not None:
            self._leases.note(keys, got, lease_ends)
        return Reading(self._carrier, got, min(sent + timeout_s, lease_ends), checksum=self._checksum)

    async def begin_get_session(self, keys: Sequence[str], *, timeout_s: float) -> GetSession:
        """Objects under a lease that can be renewed, for reading ranges of them; timeout_s is for the master's answer."""
        got, deadline = await self.locate(keys, timeout_s=timeout_s)
        return GetSession(self, list(keys), Reading(self._carrier, got, deadline, checksum=self._checksum))

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
