"""Transport `shm`, as the Transfer Engine sees it."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

import msgspec
from msgspec import Struct

from mooncake_core.errors import DeadlineExceeded, OutOfRange, PathFailed, TransferError
from mooncake_core.transfer.completions import Completions
from mooncake_core.transfer.contract import (
    Capabilities,
    Completion,
    Kind,
    Operation,
    Range,
    Transport,
    TransportSettings,
)
from mooncake_core.transfer.copying import copy
from mooncake_core.transfer.exports import check_ranges, first_outside, merged
from mooncake_shm.control import ControlPage
from mooncake_shm.introduction import Gone, Have, Want
from mooncake_shm.peer import Peer
from mooncake_shm.peers import Peers
from mooncake_shm.target import Target

COPIER_THREADS: Final = 2
INLINE_BYTES: Final = 1 << 20
"""So much is copied by the caller itself: sooner than a thread wakes up."""
CLOSING_PATIENCE_S: Final = 2.0

_log = logging.getLogger(__name__)


class ShmPath(Struct, frozen=True, array_like=True):
    """What a peer needs to reach one export. Its own side keeps to the ranges: shared memory trusts the user."""

    socket: str
    region: int
    slot: int
    generation: int
    writable: bool
    starts: list[int]
    ends: list[int]


@dataclass(slots=True)
class _Region:
    """Registered memory; without a descriptor nobody else can map it."""

    memory: memoryview
    descriptor: int | None
    slots: dict[int, tuple[int, bool]]
    """Live exports: slot → (generation, writable)."""


class ShmTransport(Transport):
    """Copies into and out of the mapped memory of peers on the same host."""

    name: ClassVar[str] = "shm"
    capabilities: ClassVar[Capabilities] = Capabilities(same_host_only=True, in_order=True)

    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._regions: dict[int, _Region] = {}
        self._handles = itertools.count(1)
        self._page = ControlPage()
        self._target = Target(self._answer)
        self._completions = Completions(settings.deliver)
        self._closing = False
        self._work: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._peers = Peers(ready=self._work.put, failed=self._failed)
        self._threads = [
            threading.Thread(target=self._copy_queued, name="shm-copy", daemon=True) for _ in range(COPIER_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def register(self, memory: memoryview, descriptor: int | None = None) -> int:
        handle = next(self._handles)
        with self._lock:
            self._regions[handle] = _Region(memory, descriptor, {})
        return handle

    def unregister(self, handle: int) -> None:
        with self._lock:
            region = self._regions.pop(handle)
        for slot in list(region.slots):
            self._withdraw_slot(region, slot)
        self._target.tell(Gone(handle))

    def export(self, handle: int, *, writable: bool, ranges: Sequence[Range] | None = None) -> bytes | None:
        with self._lock:
            region = self._regions[handle]
        check_ranges(ranges, region.memory.nbytes)
        opened = None if region.descriptor is None else self._page.open_slot()
        if opened is None:
            return None
        slot, generation = opened
        with self._lock:
            region.slots[slot] = (generation, writable)
        allowed = merged(ranges or [Range(0, region.memory.nbytes)])
        return msgspec.msgpack.encode(
            ShmPath(
                socket=self._target.name,
                region=handle,
                slot=slot,
                generation=generation,
                writable=writable,
                starts=[part.offset for part in allowed],
                ends=[part.offset + part.length for part in allowed],
            )
        )

    def withdraw(self, path: bytes) -> None:
        named = _decode(path)
        with self._lock:
            region = self._regions.get(named.region)
            if region is None or region.slots.get(named.slot) != (named.generation, named.writable):
                return
        self._withdraw_slot(region, named.slot)

    def post(self, operations: Sequence[Operation]) -> None:
        room = INLINE_BYTES
        for operation in operations:
            room -= operation.length
            peer = self._mapped(operation)
            if peer is None:
                self._introduce(operation)
            elif room >= 0:
                self._completions.add(self._carry_out(operation, peer))
            else:
                self._enqueue(operation)

    def move(self, operations: Sequence[Operation]) -> list[Completion | None]:
        return [
            None if (peer := self._mapped(operation)) is None else self._carry_out(operation, peer)
            for operation in operations
        ]

    def poll(self) -> list[Completion]:
        return self._completions.take()

    def fileno(self) -> int:
        return self._completions.fileno()

    def close(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
            regions = list(self._regions.values())
        self._target.close()
        self._peers.close()
        for _ in range(COPIER_THREADS):
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        for region in regions:
            for slot in list(region.slots):
                self._page.close_slot(slot, CLOSING_PATIENCE_S)
        self._page.close()
        self._completions.close()

    def _answer(self, want: Want) -> tuple[Have, list[int]]:
        """Descriptors for a peer: read-only ones for those who may only read."""
        with self._lock:
            region = self._regions.get(want.region)
            known = region.slots.get(want.slot) if region else None
            if region is None or region.descriptor is None or known is None or known[0] != want.generation:
                return Have(found=False), []
            if want.write and not known[1]:
                return Have(found=False), []
            try:
                return Have(found=True, length=region.memory.nbytes), self._open(region.descriptor, write=want.write)
            except OSError as error:  # out of descriptors
                return Have(found=False, errno=error.errno or errno.EIO), []

    def _open(self, region: int, *, write: bool) -> list[int]:
        """New descriptors of the control page and a region."""
        page = self._page.open_for_reading()
        mode = os.O_RDWR if write else os.O_RDONLY
        try:
            return [page, os.open(f"/proc/self/fd/{region}", mode | os.O_CLOEXEC)]
        except OSError:
            os.close(page)
            raise

    def _withdraw_slot(self, region: _Region, slot: int) -> None:
        """Waits for copies under way. Only a peer that is stopped in the middle of one makes that long; it is named."""
        with self._lock:
            if region.slots.pop(slot, None) is None:
                return
        while not self._page.close_slot(slot, CLOSING_PATIENCE_S):
            if self._closing:
                return
            _log.warning("a peer of %s is stopped while it copies over shm: its space cannot be used", self._owner)

    @property
    def _owner(self) -> str:
        return self._settings.owner

    def _enqueue(self, operation: Operation) -> None:
        with self._lock:
            if not self._closing:
                self._work.put(operation)
                return
        self._failed(operation, self._closed())

    def _introduce(self, operation: Operation) -> None:
        """Gets the peer's memory mapped, without waiting; then it is as if enqueued."""
        error: TransferError | TimeoutError = self._closed()
        try:
            path, want = _checked(operation)
            with self._lock:
                if not self._closing:
                    self._peers.introduce(operation, path.socket, want)
                    return
        except (TransferError, TimeoutError) as reason:
            error = reason
        self._failed(operation, error)

    def _failed(self, operation: Operation, error: TransferError | TimeoutError) -> None:
        self._completions.add(Completion(operation.operation_id, error))

    def _mapped(self, operation: Operation) -> Peer | None:
        """The peer, if its memory is mapped."""
        path = _decode(operation.path)
        peer = self._peers.get(path.socket)
        return peer if peer is not None and peer.is_mapped(path.region, write=operation.kind is Kind.WRITE) else None

    def _copy_queued(self) -> None:
        while (operation := self._work.get()) is not None:
            if self._closing:
                self._failed(operation, self._closed())
            else:
                peer = self._peers.get(_decode(operation.path).socket)
                self._completions.add(self._carry_out(operation, peer))

    def _carry_out(self, operation: Operation, peer: Peer | None) -> Completion:
        error: TransferError | TimeoutError | None = None
        try:
            self._copy(operation, peer)
        except (TransferError, TimeoutError) as reason:
            error = reason
        except Exception as reason:  # whatever it is, nobody may be left waiting
            _log.exception("%s could not copy over shm", self._owner)
            error = TransferError(f"{self._owner} could not copy over shm: {reason!r}")
        return Completion(operation.operation_id, error)

    def _copy(self, operation: Operation, peer: Peer | None) -> None:
        path, want = _checked(operation)
        if peer is None:
            raise PathFailed(f"the process behind {path.socket} has ended", path="shm", errno=errno.ECONNRESET)
        memory = peer.enter(want)
        try:
            parts = [memory[part.offset : part.offset + part.length] for part in operation.ranges]
            copy(operation.pieces, parts, write=want.write)
        finally:
            del memory
            peer.leave(want)

    def _closed(self) -> PathFailed:
        return PathFailed(f"the transport of {self._owner} was closed")


# Made here, once: two threads that make the first one of a type at the same time can end the process.
_decoder: Final = msgspec.msgpack.Decoder(ShmPath)


@lru_cache
def _decode(path: bytes) -> ShmPath:
    return _decoder.decode(path)


@lru_cache
def _want(path: bytes, write: bool) -> Want:
    named = _decode(path)
    return Want(named.region, named.slot, named.generation, write)


def _checked(operation: Operation) -> tuple[ShmPath, Want]:
    """Where an operation goes.

    Raises:
        DeadlineExceeded: it is late.
        OutOfRange: the export does not allow it.
    """
    if operation.deadline_s <= time.monotonic():
        raise DeadlineExceeded("the deadline passed before the copy began")
    path = _decode(operation.path)
    write = operation.kind is Kind.WRITE
    if write and not path.writable:
        raise OutOfRange("the segment is exported for reading only")
    part = first_outside(operation.ranges, path.starts, path.ends)
    if part is not None:
        raise OutOfRange(f"bytes {part.offset} to {part.offset + part.length} are not exported")
    return path, _want(operation.path, write)
