"""The Transfer Engine: registered memory, exported segments, batches of reads and writes (FAST'25, section 3.2)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from mooncake_core.errors import OutOfRange, PathFailed, TransferError
from mooncake_core.interrupts import Postponed
from mooncake_core.transfer.batch import Batch, State, Transfer, TransferRequest
from mooncake_core.transfer.contract import Kind, Operation, Range, TlsFiles, Transport, TransportSettings
from mooncake_core.transfer.device_memory import has_device_views
from mooncake_core.transfer.lanes import Lane, Lanes
from mooncake_core.transfer.paths import Buffer, Paths, Region
from mooncake_core.transfer.pinned import PinnedBuffers
from mooncake_core.transfer.slices import total_bytes
from mooncake_core.transfer.staging import is_staged
from mooncake_core.transfer.topology import Priority
from mooncake_core.transfer.under_way import UnderWay
from mooncake_core.transfer.weights import Weights
from mooncake_core.wire.messages.memory import SegmentDescriptor

PAUSE_S: Final = 0.1
TOGETHER_BYTES: Final = 1 << 20
TOGETHER_RANGES: Final = 256
"""So much one operation carries for several transfers at most: a withdrawal waits for an operation under way."""
Where = int | Sequence[Range]
"""Ranges of a segment, or the offset of a single one that is as long as the local pieces."""

_log = logging.getLogger(__name__)


class TransferEngine:
    """Moves bytes between registered local memory and segments that peers exported. Used by any thread."""

    def __init__(
        self,
        *,
        owner: str,
        host_id: str,
        incarnation: int,
        transports: Sequence[str | type[Transport]] = ("tcp",),
        optional: Collection[str] = (),
        listen_host: str = "127.0.0.1",
        listen_port: int = 0,
        further_hosts: Sequence[str] = (),
        secret: bytes | None = None,
        tls: TlsFiles | None = None,
        connections_per_peer: int = 2,
        timeout_s: float = 30.0,
        topology: Mapping[str, Priority] | None = None,
        weights: Mapping[str, float] | None = None,
        busy_poll_s: float = 0.0,
    ) -> None:
        """See PathOptions for what is not said here: of `transports` down to `busy_poll_s`.

        Raises:
            PluginUnknown, PluginUnavailable: of a transport.
        """
        self._timeout_s = timeout_s
        self._lanes = Lanes()
        self._pinned = PinnedBuffers(register=self.register_memory)
        settings = TransportSettings(
            owner=owner,
            host_id=host_id,
            incarnation=incarnation,
            listen_host=listen_host,
            listen_port=listen_port,
            further_hosts=further_hosts,
            secret=secret,
            tls=tls,
            connections_per_peer=connections_per_peer,
            topology=topology or {},
            weights=Weights(weights),
            lanes=self._lanes,
            busy_poll_s=busy_poll_s,
            pinned=self._pinned,
            deliver=lambda completion: self._under_way.complete(completion),
        )
        self._paths = Paths(settings, transports, optional)
        self._under_way = UnderWay(owner, self._paths, self._lanes, self._pinned)
        try:
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            self._paths.close()
            raise
        self._pump_thread = threading.Thread(target=self._pump, name="transfer-completions", daemon=True)
        self._pump_thread.start()

    def register_memory(self, memory: Buffer, descriptor: int | None = None) -> Region:
        """Makes local memory known to all transports. It must be writable and stay alive until unregistered.

        Peers of the same host map it where it has a descriptor (shared_memory.SharedMemory). Memory of a device is a view
        that `device_memory` made; transports that know nothing of such do not see it.
        """
        return self._paths.register(memory, descriptor)

    def unregister_memory(self, region: Region) -> None:
        """Forgets a region; its exports are withdrawn."""
        self._paths.unregister(region)

    def export(self, region: Region, *, writable: bool, ranges: Sequence[Range] | None = None) -> SegmentDescriptor:
        """Lets peers read, and write where writable, a region or only some ranges of it."""
        return self._paths.export(region, writable=writable, ranges=ranges)

    def withdraw(self, descriptor: SegmentDescriptor) -> None:
        """Ends an export. When it returns, no peer touches the memory through this descriptor any more."""
        self._paths.withdraw(descriptor)

    def allocate_batch(self, capacity: int) -> Batch:
        """A batch for up to `capacity` requests."""
        return Batch(capacity)

    def submit(
        self,
        batch: Batch,
        requests: Sequence[TransferRequest],
        timeout_s: float | None = None,
        *,
        on_done: Callable[[bool], None] | None = None,
    ) -> None:
        """Starts transfers; returns at once. What fails shows in `status`. `on_done` is called, in any thread, once all of the
        batch has ended: whether all went well."""
        if len(batch.transfers) + len(requests) > batch.capacity:
            raise OutOfRange(f"a batch of {batch.capacity} cannot take {len(requests)} requests more")
        self._under_way.start(batch, self._transfers(requests, timeout_s), on_done)

    def move(
        self,
        kind: Kind,
        segment: SegmentDescriptor,
        transfers: Sequence[tuple[Sequence[memoryview], Where]],
        *,
        timeout_s: float | None = None,
        in_order: bool = False,
    ) -> list[Transfer]:
        """Moves (pieces, where) pairs from or to a segment, all at once, and waits; what became of each.

        Where the path allows it the calling thread does the work, and no other one has to wake up: the fastest way for a
        thread that would only wait. What fails there is tried again as `submit` does.
        """
        moved = self._transfers(_requests(kind, segment, transfers, in_order), timeout_s)
        left = self._move_here(segment, moved)
        if left:
            batch = self.allocate_batch(len(left))
            with Postponed():
                self._under_way.start(batch, left)
                self.wait_uninterrupted(batch)
        return moved

    def lanes(self) -> list[Lane]:
        """All that have carried something, or failed to, and how much."""
        return self._lanes.all()

    def path_to(self, segment: SegmentDescriptor) -> str:
        """Name of the transport that is preferred for a segment; empty where none reaches it."""
        return next((transport.name for transport in self._paths.reaching(segment)), "")

    def writes_in_order(self, segment: SegmentDescriptor) -> bool:
        """Whether a transfer to this segment can be asked to be `in_order`: its ranges are then written one after the other."""
        return any(True for _ in self._paths.reaching(segment, in_order=True))

    def status(self, batch: Batch) -> list[tuple[State, TransferError | TimeoutError | None]]:
        """State and error of each request, in the order submitted."""
        with self._under_way.lock:
            return [(transfer.state, transfer.error) for transfer in batch.transfers]

    def wait(self, batch: Batch, timeout_s: float | None = None) -> bool:
        """Whether all requests have ended, after waiting for that at most timeout_s."""
        with self._under_way.lock:
            if batch.pending == 0:
                return True
            ended = threading.Event()
            batch.waiting.append(ended)
        if ended.wait(timeout_s):
            return True
        with self._under_way.lock, contextlib.suppress(ValueError):  # ended just now
            batch.waiting.remove(ended)
        return False

    def wait_uninterrupted(self, batch: Batch) -> None:
        """Waits for all requests: the pieces belong to the transports until then, an interrupt does not change that."""
        interrupt: BaseException | None = None
        while batch.pending:
            try:
                self.wait(batch)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def free(self, batch: Batch) -> None:
        """Gives a finished batch back.

        Raises:
            TransferError: requests of it are still under way.
        """
        if batch.pending:
            raise TransferError(f"{batch.pending} requests of the batch are still under way")
        batch.transfers.clear()

    async def read(
        self,
        segment: SegmentDescriptor,
        transfers: Sequence[tuple[Sequence[memoryview], Where]],
        *,
        timeout_s: float | None = None,
    ) -> list[TransferError | TimeoutError | None]:
        """Reads (pieces, where) pairs from a segment, all at once; one result each, None for success."""
        return [done.error for done in await self.transfer(Kind.READ, segment, transfers, timeout_s=timeout_s)]

    async def write(
        self,
        segment: SegmentDescriptor,
        transfers: Sequence[tuple[Sequence[memoryview], Where]],
        *,
        timeout_s: float | None = None,
    ) -> list[TransferError | TimeoutError | None]:
        """Writes (pieces, where) pairs to a segment, all at once; one result each, None for success."""
        return [done.error for done in await self.transfer(Kind.WRITE, segment, transfers, timeout_s=timeout_s)]

    async def transfer(
        self,
        kind: Kind,
        segment: SegmentDescriptor,
        transfers: Sequence[tuple[Sequence[memoryview], Where]],
        *,
        timeout_s: float | None = None,
        in_order: bool = False,
    ) -> list[Transfer]:
        """Moves (pieces, where) pairs, all at once; what became of each: its error, and the path it took."""
        if not transfers:
            return []
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        batch = self.allocate_batch(len(transfers))
        moving = self._transfers(_requests(kind, segment, transfers, in_order), timeout_s)
        self._under_way.start(batch, moving, lambda all_well: _call_soon(loop, done.set))
        # The pieces belong to the transports until the batch has ended: cancelling does not change that.
        cancelled = False
        while not done.is_set():
            try:
                await done.wait()
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        return batch.transfers

    def close(self) -> None:
        """Fails what is under way, withdraws all exports, ends all threads. Idempotent."""
        if not self._under_way.begin_to_close():
            return
        self._pinned.make_no_more()  # transports that are closed cannot register anything
        self._paths.close()
        os.eventfd_write(self._wake_fd, 1)
        self._pump_thread.join()
        self._under_way.close()
        self._pinned.close()
        os.close(self._wake_fd)

    def _transfers(self, requests: Sequence[TransferRequest], timeout_s: float | None) -> list[Transfer]:
        started_s = time.monotonic()
        deadline_s = started_s + (self._timeout_s if timeout_s is None else timeout_s)
        transfers = []
        for request in requests:
            ranges = request.ranges
            near = total_bytes(request.pieces)
            far = ranges[0].length if len(ranges) == 1 else sum([part.length for part in ranges])
            if near != far:
                raise OutOfRange(f"the local pieces have {near} bytes, the remote ranges {far}")
            first = ranges[0].offset if len(ranges) == 1 else min([part.offset for part in ranges], default=0)
            if first < 0:
                raise OutOfRange(f"expected ranges of a segment, got one that begins at {first}")
            transfers.append(Transfer(request, near, started_s, deadline_s))
        return transfers

    def _move_here(self, segment: SegmentDescriptor, transfers: Sequence[Transfer]) -> list[Transfer]:
        """Moves what can be moved in this thread over the best path; the others, which are to be submitted.

        Transfers share an operation: for blocks of a megabyte and less, much of the time goes into requests. Where one is
        refused it is not known whose fault that is, so they are submitted one by one.
        """
        in_order = bool(transfers) and transfers[0].request.in_order
        best = next(self._paths.reaching(segment, in_order), None)
        if best is None or self._under_way.is_closing:
            return list(transfers)
        if has_device_views() and any(is_staged(best, transfer.request.pieces) for transfer in transfers):
            return list(transfers)  # copying and sending go on side by side in several threads
        left: list[Transfer] = []
        groups = [transfers] if len(transfers) == 1 else _together(transfers)
        completions = best.move([self._operation(group, segment.paths[best.name]) for group in groups])
        ended_s = time.monotonic()
        for group, completion in zip(groups, completions, strict=True):
            if completion is None:
                left += group
                continue
            lane = completion.lane or self._lanes.only(best.name)
            error = completion.error
            if error is None:
                lane.num_operations += 1
                for transfer in group:
                    lane.num_bytes += transfer.num_bytes
                    transfer.path = best.name
                    transfer.whole = lane, ended_s
                    transfer.state = State.DONE
                continue
            lane.fail(error)
            if isinstance(error, PathFailed) or len(group) > 1:
                left += group
                continue
            group[0].path = best.name
            group[0].error = error
            group[0].state = State.FAILED
        return left

    def _operation(self, group: Sequence[Transfer], path: bytes) -> Operation:
        """One that carries several transfers."""
        first = group[0]
        pieces, ranges = first.request.pieces, first.request.ranges
        for transfer in group[1:]:
            pieces += transfer.request.pieces
            ranges += transfer.request.ranges
        return Operation(
            self._under_way.next_id(),
            first.request.kind,
            pieces,
            path,
            ranges,
            first.deadline_s,
            first.request.in_order,
        )

    def _pump(self) -> None:
        """Collects completions of all transports until the engine closes."""
        poller = select.poll()
        for transport in self._paths:
            poller.register(transport.fileno(), select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        while not self._under_way.is_closing:
            poller.poll()
            try:
                self._under_way.collect()
            except Exception:  # of one transport; the others' completions must still come
                _log.exception("completions could not be collected")
                time.sleep(PAUSE_S)


def _requests(
    kind: Kind,
    segment: SegmentDescriptor,
    transfers: Sequence[tuple[Sequence[memoryview], Where]],
    in_order: bool = False,
) -> list[TransferRequest]:
    return [
        TransferRequest(kind, tuple(pieces), segment, _ranges(pieces, where), in_order) for pieces, where in transfers
    ]


def _together(transfers: Sequence[Transfer]) -> list[Sequence[Transfer]]:
    """Transfers of one kind to one segment, grouped so that each group is worth an operation, and no longer than that."""
    groups: list[Sequence[Transfer]] = []
    group: list[Transfer] = []
    num_bytes = num_ranges = 0
    for transfer in transfers:
        num_bytes += total_bytes(transfer.request.pieces)
        num_ranges += len(transfer.request.ranges)
        if group and (num_bytes > TOGETHER_BYTES or num_ranges > TOGETHER_RANGES):
            groups.append(group)
            group, num_bytes, num_ranges = [], total_bytes(transfer.request.pieces), len(transfer.request.ranges)
        group.append(transfer)
    return [*groups, group] if group else groups


def _ranges(pieces: Sequence[memoryview], where: Where) -> tuple[Range, ...]:
    return (Range(where, total_bytes(pieces)),) if isinstance(where, int) else tuple(where)


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
        loop.call_soon_threadsafe(callback)


def first_error(results: Sequence[TransferError | TimeoutError | None]) -> TransferError | TimeoutError | None:
    """The first failure among the results of read or write."""
    return next((error for error in results if error is not None), None)


__all__ = ["Batch", "Region", "State", "TransferEngine", "TransferRequest", "first_error"]
