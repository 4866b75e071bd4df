"""Who carries out what a client decides: asks the master, moves bytes, feeds sums, waits. On an event loop; calling_thread.py is
the same for threads.

The client's logic is coroutines that wait for nothing but a Carrier, so one logic serves both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from mooncake_core.store import checksums
from mooncake_core.store.waiting import all_ended, outlasting
from mooncake_core.transfer.batch import Transfer
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.memory import SegmentDescriptor

M = TypeVar("M")
T = TypeVar("T")


@dataclass(slots=True)
class Ends:
    """Of one transfer: pieces here, and the ranges of a segment that they go to or come from."""

    near: list[memoryview] = field(default_factory=list)
    far: list[Range] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, offset: int, pieces: Sequence[memoryview], length: int) -> None:
        """A range more; where it goes on from the one before, a longer one: each costs something all the way."""
        self.near.extend(pieces)
        self.num_bytes += length
        far = self.far
        if far and far[-1].offset + far[-1].length == offset:
            far[-1] = Range(far[-1].offset, far[-1].length + length)
        else:
            far.append(Range(offset, length))


class Job(NamedTuple):
    """What goes to, or comes from, one segment with one transfer."""

    segment: SegmentDescriptor
    ends: Ends


class Asker(Protocol):
    """Asks the master."""

    async def call(self, message: Message, reply_type: type[M], *, timeout_s: float) -> M:
        """As wire.client.Client.call."""


class Carrier(Protocol):
    """Of one client."""

    @property
    def master(self) -> Asker:
        """Whom to ask."""

    def width(self, kind: Kind, segment: SegmentDescriptor, num_bytes: int) -> int:
        """How many jobs so many bytes of one node are best divided into."""

    async def call_surely(
        self, message: Message, reply_type: type[M], *, timeout_s: float
    ) -> tuple[M, BaseException | None]:
        """A call that an interrupt does not cut short: the answer, and the interrupt to raise when it was taken care of."""

    async def move(
        self,
        kind: Kind,
        jobs: Sequence[Job],
        *,
        timeout_s: float,
        in_order: bool = False,
        beside: checksums.Fed = (),
        divided_bytes: int = 0,
    ) -> tuple[list[Transfer], BaseException | None]:
        """Moves bytes, all jobs at once where that is of use, and meanwhile takes others into their sums. `divided_bytes`: for
        how many bytes `width` was asked how to divide them; 0 where it was not. What became of each job, and the interrupt to
        raise when that was noted. Returns, or raises an interrupt that kept it from being known, only when nothing uses the
        pieces any more."""

    def writes_in_order(self, segment: SegmentDescriptor) -> bool:
        """As TransferEngine.writes_in_order."""

    async def feed(self, pairs: checksums.Fed) -> None:
        """Takes pieces into the sums of their objects."""

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Has work done to its end, also when interrupted."""

    async def sleep(self, seconds: float) -> None:
        """Lets time pass."""


class LoopCarrier:
    """For clients on an event loop."""

    def __init__(self, master: Asker, engine: TransferEngine) -> None:
        self.master = master
        self._engine = engine

    def width(self, kind: Kind, segment: SegmentDescriptor, num_bytes: int) -> int:
        return 1  # the engine cuts a job into slices itself, for several connections

    async def call_surely(
        self, message: Message, reply_type: type[M], *, timeout_s: float
    ) -> tuple[M, BaseException | None]:
        return await outlasting(self.master.call(message, reply_type, timeout_s=timeout_s))

    async def move(
        self,
        kind: Kind,
        jobs: Sequence[Job],
        *,
        timeout_s: float,
        in_order: bool = False,
        beside: checksums.Fed = (),
        divided_bytes: int = 0,
    ) -> tuple[list[Transfer], BaseException | None]:
        moved: list[list[Transfer]] = [[] for _ in jobs]

        async def carry(index: int, job: Job) -> None:
            transfers = [(job.ends.near, job.ends.far)]
            moved[index] = await self._engine.transfer(
                kind, job.segment, transfers, timeout_s=timeout_s, in_order=in_order
            )

        _, interrupt = await outlasting(
            all_ended([*(carry(index, job) for index, job in enumerate(jobs)), checksums.feed(beside)])
        )
        return [transfer for transfers in moved for transfer in transfers], interrupt

    def writes_in_order(self, segment: SegmentDescriptor) -> bool:
        return self._engine.writes_in_order(segment)

    async def feed(self, pairs: checksums.Fed) -> None:
        await checksums.feed(pairs)

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
