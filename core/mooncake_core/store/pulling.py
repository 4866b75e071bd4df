"""Copies a node makes in its own segment of objects that lie in another node's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mooncake_core.errors import (
    ChecksumMismatch,
    MooncakeError,
    ObjectNotFound,
    OutOfRange,
    RequestCancelled,
    StaleAllocation,
    to_wire,
)
from mooncake_core.store import checksums
from mooncake_core.store.layout import (
    SLOT_BYTES,
    Header,
    Slot,
    SlotState,
    extent_bytes,
    header_bytes,
    pack_slot,
    unpack_header,
    unpack_slot,
)
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.tasks import Pull

PULL_TIMEOUT_S: Final = 8.0
"""Less than the master waits for the answer."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Pulling:
    """One pull, and its error code when it has ended."""

    wanted: Pull
    ended: asyncio.Future[str]
    stopped: bool = False


class Pulls:
    """The copies under way, by the slot they fill. The slot is written last, when the copy was verified."""

    def __init__(self, engine: TransferEngine, view: memoryview, *, num_slots: int, data_offset: int) -> None:
        """`view`: the node's segment."""
        self._engine = engine
        self._view = view
        self._num_slots = num_slots
        self._data_offset = data_offset
        self._running: dict[int, _Pulling] = {}
        self._groups: set[asyncio.Task[None]] = set()

    async def pull(self, source: SegmentDescriptor, wanted: Sequence[Pull]) -> list[str]:
        """Copies objects; one error code each, empty for success. What is there or under way is not copied again.

        What has begun goes on when the asker gives up.
        """
        known = [self._find(one) for one in wanted]
        fresh = [self._begin(one) for one, pull in zip(wanted, known, strict=True) if pull is None]
        if fresh:
            group = asyncio.get_running_loop().create_task(self._copy(source, fresh))
            self._groups.add(group)
            group.add_done_callback(self._groups.discard)
        begun = iter(fresh)
        return [await asyncio.shield((pull or next(begun)).ended) for pull in known]

    async def stop(self, slots: Iterable[int] | None = None) -> None:
        """Ends the pulls into these slots, or all. When it returns they touch the segment no more."""
        wanted = list(self._running) if slots is None else slots
        stopped = [self._running[slot] for slot in wanted if slot in self._running]
        for pull in stopped:
            pull.stopped = True
        for pull in stopped:
            await asyncio.shield(pull.ended)

    def _find(self, wanted: Pull) -> _Pulling | None:
        """A pull that runs already, or has ended, or need not begin; None where there is something to copy."""
        running = self._running.get(wanted.slot)
        if running is not None:
            same = (running.wanted.allocation_id, running.wanted.offset) == (wanted.allocation_id, wanted.offset)
            return running if same and not running.stopped else _ended(wanted, StaleAllocation.code)
        end = wanted.offset + extent_bytes(wanted.key, wanted.parent, wanted.size_bytes)
        if not 0 <= wanted.slot < self._num_slots or wanted.offset < self._data_offset or end > len(self._view):
            return _ended(wanted, OutOfRange.code)
        slot = unpack_slot(self._view[wanted.slot * SLOT_BYTES : (wanted.slot + 1) * SLOT_BYTES])
        if slot is None:
            return None
        is_it = (slot.state, slot.allocation_id, slot.offset) == (
            SlotState.COMMITTED,
            wanted.allocation_id,
            wanted.offset,
        )
        return _ended(wanted, "" if is_it else StaleAllocation.code)

    def _begin(self, wanted: Pull) -> _Pulling:
        pull = _Pulling(wanted, asyncio.get_running_loop().create_future())
        self._running[wanted.slot] = pull
        return pull

    async def _copy(self, source: SegmentDescriptor, pulls: Sequence[_Pulling]) -> None:
        """One batch of transfers brings all; each object is committed, or not, by itself."""
        codes = dict.fromkeys(pulls, RequestCancelled.code)
        try:
            requests = [([self._space(pull.wanted)], pull.wanted.source_offset) for pull in pulls]
            done = await self._engine.transfer(Kind.READ, source, requests, timeout_s=PULL_TIMEOUT_S)
            for pull, transfer in zip(pulls, done, strict=True):
                codes[pull] = await self._commit(pull, transfer.error)
        finally:
            for pull, code in codes.items():
                del self._running[pull.wanted.slot]
                pull.ended.set_result(code)

    async def _commit(self, pull: _Pulling, error: Exception | None) -> str:
        """Puts a copy into the directory, if it is what it is to be."""
        try:
            if error is not None:
                raise error
            await self._verify(pull.wanted)
        except (MooncakeError, TimeoutError) as reason:
            _log.warning("cannot copy %s: %s", pull.wanted.key, reason)
            return to_wire(reason)[0]
        if pull.stopped:
            return RequestCancelled.code
        wanted = pull.wanted
        slot = Slot(SlotState.COMMITTED, wanted.allocation_id, wanted.offset, wanted.size_bytes, wanted.checksum)
        self._view[wanted.slot * SLOT_BYTES : (wanted.slot + 1) * SLOT_BYTES] = pack_slot(slot)
        return ""

    async def _verify(self, wanted: Pull) -> None:
        """The source's lease may have ended, or its memory be damaged.

        Raises:
            ObjectNotFound: something else was there.
            ChecksumMismatch: the bytes are not those that were put.
        """
        space = self._space(wanted)
        if unpack_header(space) != Header(wanted.allocation_id, wanted.size_bytes, wanted.key, wanted.parent):
            raise ObjectNotFound("the source has something else where it was said to be")
        if wanted.checksum == checksums.NO_CHECKSUM:  # nothing to compare with
            return
        start = header_bytes(wanted.key, wanted.parent)
        digest = checksums.Digest()
        await checksums.feed([(digest, [space[start : start + wanted.size_bytes]])])
        if digest.intdigest() != wanted.checksum:
            raise ChecksumMismatch("its bytes at the source are not those that were put")

    def _space(self, wanted: Pull) -> memoryview:
        """Header and data, without what is there for alignment only."""
        length = header_bytes(wanted.key, wanted.parent) + wanted.size_bytes
        return self._view[wanted.offset : wanted.offset + length]


def _ended(wanted: Pull, code: str) -> _Pulling:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ended.set_result(code)
    return _Pulling(wanted, ended)
