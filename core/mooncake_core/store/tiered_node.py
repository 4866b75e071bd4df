"""A node with tiers below its DRAM: copies objects down and up in worker threads, when the master says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from msgspec import structs

from mooncake_core.errors import StaleAllocation
from mooncake_core.store.layout import SLOT_BYTES, Header, Slot, SlotState, header_bytes, pack_header, pack_slot
from mooncake_core.store.node import Node
from mooncake_core.store.tiers.contract import NewTierObject, TierKey, TierObject
from mooncake_core.store.tiers.stack import TierStack
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.pool import Fence, Fenced
from mooncake_core.wire.messages.tiering import (
    Demote,
    Demoted,
    ForgetTiered,
    Promote,
    Promoted,
    Promotion,
    ReportTiers,
    SlotName,
    TieredName,
    TieredObject,
    TierReport,
)
from mooncake_core.wire.server import Call, Handler

OBJECTS_PER_REPORT: Final = 4096
NUM_READERS: Final = 2

T = TypeVar("T")


class TieredNode(Node):
    """What is written to the tiers goes through one thread, in order; what is read, through a few."""

    def __init__(
        self,
        name: str,
        *,
        capacity_bytes: int,
        object_size_bytes: int,
        incarnation: int,
        engine: TransferEngine,
        tiers: TierStack,
        prefault: bool = False,
    ) -> None:
        """The tiers are the node's from now on, also when this fails."""
        self._tiers = tiers
        try:
            super().__init__(
                name,
                capacity_bytes=capacity_bytes,
                object_size_bytes=object_size_bytes,
                incarnation=incarnation,
                engine=engine,
                prefault=prefault,
            )
        except BaseException:
            tiers.close()
            raise
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="tier-writer")
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="tier-reader")
        self._promoting: dict[tuple[int, int], asyncio.Future[str]] = {}
        """By slot and allocation id."""
        self._earlier: list[asyncio.Future[str]] = []
        """Promotions that an earlier master asked for."""
        self._sync_timer: asyncio.TimerHandle | None = None

    def offer(self) -> SegmentOffer:
        return structs.replace(super().offer(), tiers=self._tiers.kinds, write_through=self._tiers.write_through)

    def handlers(self) -> dict[type, Handler]:
        tiering: dict[type, Handler] = {
            Demote: self.demote,
            Promote: self.promote,
            ReportTiers: self.report_tiers,
            ForgetTiered: self.forget_tiered,
        }
        return {**super().handlers(), **tiering}

    async def fence(self, message: Fence, call: Call) -> Fenced:
        """What the node itself writes for an earlier master ends first."""
        self._check_term(message.term)
        if message.term > self._term:
            self._term = message.term
            self._earlier = list(self._promoting.values())
        if self._earlier:
            await asyncio.wait(self._earlier)  # also when it is asked again meanwhile
        return await super().fence(message, call)

    async def demote(self, message: Demote, call: Call) -> Demoted:
        """Copies objects to the tiers; those that are not what the master takes them for are left out."""
        self._check(message.term, message.incarnation)
        found = [item for name in message.slots if (item := self._committed(name)) is not None]
        written = await self._in(self._writer, lambda: self._tiers.write(found))
        self._sync_soon()
        return Demoted(
            stored=[_tiered(item.about) for item, stored in zip(found, written.stored, strict=True) if stored],
            dropped=[TieredName(key=name.key, allocation_id=name.allocation_id) for name in written.dropped],
            tiers=await self._in(self._readers, self._tiers.fills),
        )

    async def promote(self, message: Promote, call: Call) -> Promoted:
        """Copies objects from the tiers to space that the master has taken for them."""
        self._check(message.term, message.incarnation)
        work = asyncio.gather(*(self._promotion(wanted) for wanted in message.objects))
        return Promoted(tiers=await asyncio.shield(work))  # goes on when the asker gives up

    async def report_tiers(self, message: ReportTiers, call: Call) -> TierReport:
        """The next part of what the tiers hold."""
        self._check_term(message.term)
        part = await self._in(self._readers, lambda: self._tiers.list_objects(message.cursor, OBJECTS_PER_REPORT))
        return TierReport(
            incarnation=self._incarnation,
            objects=[_tiered(about) for about in part.objects],
            next_cursor=part.cursor,
            tiers=await self._in(self._readers, self._tiers.fills),
        )

    async def forget_tiered(self, message: ForgetTiered, call: Call) -> Done:
        """Removes objects from the tiers, after all that is being written."""
        self._check(message.term, message.incarnation)
        names = [TierKey(name.key, name.allocation_id) for name in message.names]
        await self._in(self._writer, lambda: self._tiers.remove(names))
        self._sync_soon()
        return Done()

    def close(self) -> None:
        """Ends the copies first: they use the memory."""
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        self._writer.shutdown()
        self._readers.shutdown()
        self._tiers.close()
        super().close()

    def _promotion(self, wanted: Promotion) -> asyncio.Future[str]:
        """One copy at a time to a place: an answer says that nobody writes there any more."""
        place = (wanted.slot, wanted.allocation_id)
        if place not in self._promoting:
            work = self._promoting[place] = self._in(self._readers, partial(self._bring, wanted))
            work.add_done_callback(lambda _: self._promoting.pop(place))
        return self._promoting[place]

    def _check(self, term: int, incarnation: int) -> None:
        self._check_term(term)
        if incarnation != self._incarnation:
            raise StaleAllocation(f"{self._name} is of incarnation {self._incarnation}, not {incarnation}")

    def _in(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(threads, work)

    def _committed(self, name: SlotName) -> NewTierObject | None:
        """A whole object in DRAM."""
        slot = self._slot(name.slot)
        if slot is None or (slot.state, slot.allocation_id) != (SlotState.COMMITTED, name.allocation_id):
            return None
        stored = self._directory.object_at(name.slot)
        if stored is None:
            return None
        start = stored.offset + header_bytes(stored.key, stored.parent)
        about = TierObject(
            key=stored.key,
            allocation_id=stored.allocation_id,
            size_bytes=stored.size_bytes,
            checksum=stored.checksum,
            parent=stored.parent,
        )
        return NewTierObject(about, self._view[start : start + stored.size_bytes].toreadonly())

    def _bring(self, wanted: Promotion) -> str:
        """Writes data and header, and then the slot, as any writer does; the kind of tier it came from."""
        start = wanted.offset + header_bytes(wanted.key, wanted.parent)
        target = self._view[start : start + wanted.size_bytes]
        kind = self._tiers.read(TierKey(wanted.key, wanted.allocation_id), target)
        if kind:
            header = pack_header(Header(wanted.allocation_id, wanted.size_bytes, wanted.key, wanted.parent))
            self._view[wanted.offset : start] = header
            slot = Slot(SlotState.COMMITTED, wanted.allocation_id, wanted.offset, wanted.size_bytes, wanted.checksum)
            self._view[wanted.slot * SLOT_BYTES : (wanted.slot + 1) * SLOT_BYTES] = pack_slot(slot)
        return kind

    def _sync_soon(self) -> None:
        """At most `sync_interval_s` after a write all of it is safe from a power cut, as far as the tiers promise that."""
        if self._sync_timer is None:
            loop = asyncio.get_running_loop()
            self._sync_timer = loop.call_later(self._tiers.sync_interval_s, self._sync)

    def _sync(self) -> None:
        self._sync_timer = None
        self._writer.submit(self._tiers.sync)


def _tiered(about: TierObject) -> TieredObject:
    return TieredObject(
        key=about.key,
        allocation_id=about.allocation_id,
        size_bytes=about.size_bytes,
        checksum=about.checksum,
        parent=about.parent,
    )
