"""What an engine has under way: slices of transfers, each with one transport, and which others carry it if that one's path
fails."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from mooncake_core.errors import PathFailed, TransferError
from mooncake_core.interrupts import Postponed
from mooncake_core.transfer.batch import Batch, State, Transfer
from mooncake_core.transfer.contract import Completion, Operation, Transport
from mooncake_core.transfer.device_memory import has_device_views
from mooncake_core.transfer.lanes import Lanes, Part
from mooncake_core.transfer.paths import Paths
from mooncake_core.transfer.pinned import PinnedBuffers
from mooncake_core.transfer.slices import cut, slice_bytes
from mooncake_core.transfer.staging import Staging

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slice:
    """One operation under way, and where it may go if its path fails."""

    operation: Operation
    name: str
    """Of the transport that has it."""
    batch: Batch
    transfer: Transfer
    others: list[Transport]
    """The last is the one that had it first: the path may have failed only because another transfer on it did."""


class UnderWay:
    """Of one engine. Used by any thread."""

    def __init__(self, owner: str, paths: Paths, lanes: Lanes, pinned: PinnedBuffers) -> None:
        self.lock = threading.Lock()
        """Of the states of all transfers."""
        self.is_closing = False
        self._is_closed = False
        """Nobody else collects any more: whoever posts something does."""
        self._owner = owner
        self._paths = paths
        self._lanes = lanes
        self._slices: dict[int, _Slice] = {}
        self._operation_ids = itertools.count(1)
        self._staging = Staging(
            owner,
            pinned,
            next_id=self.next_id,
            peer_of=self._peer_of,
            post=self._post_staged,
            complete=self.complete,
        )

    def next_id(self) -> int:
        """Of an operation."""
        return next(self._operation_ids)

    def start(self, batch: Batch, transfers: Sequence[Transfer], on_done: Callable[[bool], None] | None = None) -> None:
        """Adds transfers to a batch, and posts them; returns at once. `on_done` is called once all of the batch has ended:
        whether all went well."""
        if transfers:
            with Postponed():
                self._start(batch, transfers, on_done)

    def _start(self, batch: Batch, transfers: Sequence[Transfer], on_done: Callable[[bool], None] | None) -> None:
        with self.lock:
            batch.transfers.extend(transfers)
            batch.pending += len(transfers)
            if on_done is not None:
                batch.on_done.append(on_done)
        posts: dict[str, list[Operation]] = {}
        for transfer in transfers:
            self._plan(batch, transfer, posts)
        for name, operations in posts.items():
            self._post(self._paths[name], operations)
        if self._is_closed:
            self.collect()

    def collect(self) -> None:
        """Takes what the transports have completed."""
        for transport in self._paths:
            for completion in transport.poll():
                self.complete(completion)

    def complete(self, completion: Completion) -> None:
        """How an operation ended."""
        with self.lock:
            piece = self._slices.pop(completion.operation_id, None)
        if piece is None:
            if self._staging.has_posted(completion):
                return
            _log.warning("operation %d was completed twice", completion.operation_id)
            return
        transfer = piece.transfer
        lane = completion.lane or self._lanes.only(piece.name)
        part = None
        if completion.error is None:
            part = Part(lane, piece.operation.length, time.monotonic())
            lane.count(part.num_bytes)
        else:
            lane.fail(completion.error)
        if isinstance(completion.error, PathFailed) and self._may_retry(piece):
            self._retry(piece)
            return
        with self.lock:
            if part is not None and transfer.parts is not None:
                transfer.parts.append(part)
            transfer.error = transfer.error or completion.error
            transfer.remaining -= 1
            is_last = transfer.remaining == 0
        if is_last:
            self._end(piece.batch, transfer, transfer.error)

    def begin_to_close(self) -> bool:
        """What is started from now on fails, and nothing is tried again. False where that was so before."""
        with self.lock:
            was_closing, self.is_closing = self.is_closing, True
        return not was_closing

    def close(self) -> None:
        """Fails what is left; the transports are closed before."""
        self._is_closed = True
        self.collect()
        self._staging.close()

    def _plan(self, batch: Batch, transfer: Transfer, posts: dict[str, list[Operation]]) -> None:
        """Cuts a request into slices for the best path there is."""
        request = transfer.request
        candidates = [*self._paths.reaching(request.segment, request.in_order)]
        if self.is_closing:
            self._end(batch, transfer, PathFailed(f"the engine of {self._owner} was closed"))
            return
        if not candidates:
            self._end(batch, transfer, PathFailed(self._paths.none_reaches(request.segment)))
            return
        best, *others = candidates
        slices = [(request.pieces, request.ranges)]
        if not request.in_order:
            slices = cut(request.pieces, request.ranges, slice_bytes(transfer.num_bytes, best.num_ways))
        transfer.remaining = len(slices)
        transfer.parts = []
        for pieces, ranges in slices:
            operation = Operation(
                operation_id=self.next_id(),
                kind=request.kind,
                pieces=pieces,
                path=request.segment.paths[best.name],
                ranges=ranges,
                deadline_s=transfer.deadline_s,
                in_order=request.in_order,
                has_others=bool(others),
            )
            transfer.path = best.name
            with self.lock:
                self._slices[operation.operation_id] = _Slice(operation, best.name, batch, transfer, [*others, best])
            posts.setdefault(best.name, []).append(operation)

    def _post(self, transport: Transport, operations: Sequence[Operation]) -> None:
        if has_device_views():
            operations = self._staging.take_over(transport, operations)
            if not operations:
                return
        try:
            transport.post(operations)
        except Exception as error:
            _log.exception("transport %s could not post", transport.name)
            reason = PathFailed(f"transport {transport.name} could not post: {error!r}", path=transport.name)
            for operation in operations:
                if self._is_left(operation):
                    self.complete(Completion(operation.operation_id, reason))

    def _is_left(self, operation: Operation) -> bool:
        """Whether it has not ended, nor goes another way by now."""
        with self.lock:
            piece = self._slices.get(operation.operation_id)
        return self._staging.awaits(operation) if piece is None else piece.operation is operation

    def _peer_of(self, operation: Operation) -> int:
        """The incarnation of the process that an operation under way goes to."""
        with self.lock:
            return self._slices[operation.operation_id].transfer.request.segment.incarnation

    def _post_staged(self, transport: Transport, operations: Sequence[Operation]) -> None:
        self._post(transport, operations)
        if self._is_closed:
            self.collect()

    def _may_retry(self, piece: _Slice) -> bool:
        return bool(piece.others) and not self.is_closing and time.monotonic() < piece.operation.deadline_s

    def _retry(self, piece: _Slice) -> None:
        """The path failed: the next one carries the slice."""
        transport, *others = piece.others
        path = piece.transfer.request.segment.paths[transport.name]
        operation = msgspec.structs.replace(piece.operation, path=path, has_others=bool(others))
        piece.transfer.path = transport.name
        with self.lock:
            self._slices[operation.operation_id] = _Slice(
                operation, transport.name, piece.batch, piece.transfer, others
            )
        self._post(transport, [operation])

    def _end(self, batch: Batch, transfer: Transfer, error: TransferError | TimeoutError | None) -> None:
        with self.lock:
            transfer.error = error
            transfer.state = State.FAILED if error else State.DONE
            batch.pending -= 1
            if batch.pending:
                return
            # All of it now: as soon as nothing is pending, the batch may be given back, or get further transfers.
            all_well = not any(transfer.error for transfer in batch.transfers)
            on_done, batch.on_done = batch.on_done, []
            waiting, batch.waiting = batch.waiting, []
        for call in on_done:
            call(all_well)
        for ended in waiting:
            ended.set()
