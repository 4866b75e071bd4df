"""Transport `shm`, as the Transfer Engine sees it."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import select
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
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
from mooncake_core.transfer.exports import check_ranges, merged
from mooncake_shm.control import ControlPage
from mooncake_shm.copying import copy
from mooncake_shm.introduction import Have, Want
from mooncake_shm.peer import Peer
from mooncake_shm.target import Target

COPIER_THREADS: Final = 2
INLINE_BYTES: Final = 1 << 20
"""So much is copied by the caller itself: sooner than a thread wakes up."""
CLOSING_PATIENCE_S: Final = 2.0
KNOWN_DEAD: Final = 1024

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

    def allows(self, offset: int, length: int) -> bool:
        """Whether one range covers [offset, offset + length)."""
        index = bisect_right(self.starts, offset) - 1
        return index >= 0 and offset + length <= self.ends[index]


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
    capabilities: ClassVar[Capabilities] = Capabilities(same_host_only=True)

    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._regions: dict[int, _Region] = {}
        self._handles = itertools.count(1)
        self._page = ControlPage()
        self._target = Target(self._answer)
        self._completions = Completions()
        self._peers: dict[str, Peer] = {}
        self._dead: OrderedDict[str, None] = OrderedDict()
        self._closing = False
        self._work: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [
            threading.Thread(target=self._copy_queued, name="shm-copy", daemon=True) for _ in range(COPIER_THREADS)
        ]
        self._threads.append(threading.Thread(target=self._watch_peers, name="shm-peers", daemon=True))
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
            if room >= 0 and self._is_mapped(operation):
                self._complete(operation)
            elif not self._enqueue(operation):
                self._completions.add(Completion(operation.operation_id, self._closed()))

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
        for _ in range(COPIER_THREADS):
            self._work.put(None)
        os.eventfd_write(self._wake_fd, 1)
        for thread in self._threads:
            thread.join()
        for region in regions:
            for slot in list(region.slots):
                self._page.close_slot(slot, CLOSING_PATIENCE_S)
        for peer in self._peers.values():
            peer.end()
        self._page.close()
        self._completions.close()
        os.close(self._wake_fd)

    def _answer(self, want: Want) -> tuple[Have, list[int]]:
        """Descriptors for a peer: read-only ones for those who may only read."""
        with self._lock:
            region = self._regions.get(want.region)
            known = region.slots.get(want.slot) if region else None
            if region is None or region.descriptor is None or known is None or known[0] != want.generation:
                return Have(found=False, length=0), []
            if want.write and not known[1]:
                return Have(found=False, length=0), []
            mode = os.O_RDWR if want.write else os.O_RDONLY
            memory = os.open(f"/proc/self/fd/{region.descriptor}", mode | os.O_CLOEXEC)
            return Have(found=True, length=region.memory.nbytes), [os.dup(self._page.fd), memory]

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

    def _enqueue(self, operation: Operation) -> bool:
        with self._lock:
            if not self._closing:
                self._work.put(operation)
            return not self._closing

    def _is_mapped(self, operation: Operation) -> bool:
        path = _decode(operation.path)
        peer = self._peers.get(path.socket)
        return peer is not None and peer.is_mapped(path.region, write=operation.kind is Kind.WRITE)

    def _copy_queued(self) -> None:
        while (operation := self._work.get()) is not None:
            if self._closing:
                self._completions.add(Completion(operation.operation_id, self._closed()))
            else:
                self._complete(operation)

    def _complete(self, operation: Operation) -> None:
        error: TransferError | TimeoutError | None = None
        try:
            self._copy(operation)
        except (TransferError, TimeoutError) as reason:
            error = reason
        self._completions.add(Completion(operation.operation_id, error))

    def _copy(self, operation: Operation) -> None:
        if operation.deadline_s <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the copy began")
        path = _decode(operation.path)
        write = operation.kind is Kind.WRITE
        if write and not path.writable:
            raise OutOfRange("the segment is exported for reading only")
        for part in operation.ranges:
            if not path.allows(part.offset, part.length):
                raise OutOfRange(f"bytes {part.offset} to {part.offset + part.length} are not exported")
        peer = self._peer(path.socket)
        want = Want(path.region, path.slot, path.generation, write)
        memory = peer.enter(want)
        try:
            parts = [memory[part.offset : part.offset + part.length] for part in operation.ranges]
            copy(operation.pieces, parts, write=write)
        finally:
            del memory
            peer.leave(want)

    def _peer(self, name: str) -> Peer:
        with self._lock:
            peer = self._peers.get(name)
            if peer is not None:
                return peer
            if name in self._dead:  # names are never used again
                raise PathFailed(f"the process behind {name} has ended", path="shm", errno=111)
        try:
            peer = Peer(name)
        except PathFailed:
            self._bury(name)
            raise
        with self._lock:
            first = self._peers.setdefault(name, peer)
        if first is not peer:
            peer.end()
        else:
            os.eventfd_write(self._wake_fd, 1)
        return first

    def _bury(self, name: str) -> None:
        with self._lock:
            self._peers.pop(name, None)
            self._dead[name] = None
            while len(self._dead) > KNOWN_DEAD:
                self._dead.popitem(last=False)

    def _watch_peers(self) -> None:
        """Unmaps the memory of peers that have ended."""
        while not self._closing:
            with self._lock:
                peers = {peer.fileno(): peer for peer in self._peers.values()}
            poller = select.poll()
            poller.register(self._wake_fd, select.POLLIN)
            for fileno in peers:
                poller.register(fileno, select.POLLRDHUP)
            for fileno, _ in poller.poll():
                if fileno == self._wake_fd:
                    os.eventfd_read(self._wake_fd)
                else:
                    self._bury(peers[fileno].name)
                    peers[fileno].end()

    def _closed(self) -> PathFailed:
        return PathFailed(f"the transport of {self._owner} was closed")


def _decode(path: bytes) -> ShmPath:
    return msgspec.msgpack.decode(path, type=ShmPath)
