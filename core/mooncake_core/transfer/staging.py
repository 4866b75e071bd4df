"""Device memory over transports that do not reach it: copied through pinned memory of the host, at the initiator."""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final, NamedTuple

import msgspec

from mooncake_core.errors import DeadlineExceeded, PathFailed, TransferError
from mooncake_core.transfer.contract import Completion, Kind, Operation, Range, Transport
from mooncake_core.transfer.device import Device
from mooncake_core.transfer.device_memory import copy, device_among
from mooncake_core.transfer.lanes import Lane
from mooncake_core.transfer.pinned import PinnedBuffers
from mooncake_core.transfer.slices import cut, total_bytes

MOST_PER_PEER: Final = 4
"""Operations under way at once: while one is copied, others are sent."""
MOST_THREADS: Final = 16
"""So that a few peers which stand still keep nobody from moving to and from others."""

_log = logging.getLogger(__name__)


class _Staged(NamedTuple):
    transport: Transport
    operation: Operation
    device: Device
    peer: int


def is_staged(transport: Transport, pieces: Sequence[memoryview]) -> bool:
    """Whether pieces go through memory of the host: some lie on a device that the transport does not reach."""
    return device_among(pieces) is not None and not transport.reaches_devices_of(pieces)


class Staging:
    """Of one engine. Its threads begin with the first operation; until then it costs nothing."""

    def __init__(
        self,
        owner: str,
        buffers: PinnedBuffers,
        *,
        next_id: Callable[[], int],
        peer_of: Callable[[Operation], int],
        post: Callable[[Transport, Sequence[Operation]], None],
        complete: Callable[[Completion], None],
    ) -> None:
        """`post` gives operations on memory of the host to a transport; their completions come to `has_posted`."""
        self._closed = PathFailed(f"the engine of {owner} was closed")
        self._buffers = buffers
        self._next_id = next_id
        self._peer_of = peer_of
        self._post = post
        self._complete = complete
        self._lock = threading.Lock()
        self._has_work = threading.Condition(self._lock)
        self._has_earlier = threading.Condition(self._lock)
        """A deadline than the one that is waited for."""
        self._waiting: deque[_Staged] = deque()
        self._earliest_s = math.inf
        """Deadline that the watch looks at next."""
        self._threads: list[threading.Thread] = []
        self._num_idle = 0
        self._num_under_way: Counter[int] = Counter()
        """By peer."""
        self._posted: dict[int, SimpleQueue[Completion]] = {}
        self._closing = False

    def take_over(self, transport: Transport, operations: Sequence[Operation]) -> Sequence[Operation]:
        """Carries out what the transport does not take as it is, each with one completion; the others. Returns at once."""
        left = []
        for operation in operations:
            if is_staged(transport, operation.pieces):
                self._start(transport, operation)
            else:
                left.append(operation)
        return left

    def awaits(self, operation: Operation) -> bool:
        """Whether it was posted here and has not ended."""
        return operation.operation_id in self._posted

    def has_posted(self, completion: Completion) -> bool:
        """Whether a completion is of an operation that was posted here; it is taken then."""
        posted = self._posted.pop(completion.operation_id, None)
        if posted is not None:
            posted.put(completion)
        return posted is not None

    def close(self) -> None:
        """Fails what waits, and waits for what is under way. The transports are closed before."""
        with self._lock:
            self._closing = True
            left, self._waiting = self._waiting, deque()
            self._has_work.notify_all()
            self._has_earlier.notify_all()
        for staged in left:
            self._complete(Completion(staged.operation.operation_id, self._closed))
        for thread in self._threads:
            thread.join()

    def _start(self, transport: Transport, operation: Operation) -> None:
        device = device_among(operation.pieces)
        assert device is not None
        error = self._closed
        peer = self._peer_of(operation)
        with self._lock:
            if not self._closing:
                try:
                    self._add(_Staged(transport, operation, device, peer))
                    return
                except RuntimeError as reason:
                    error = PathFailed(
                        f"memory of {device.name} cannot be copied: {reason}", path=transport.name, errno=errno.EAGAIN
                    )
        self._complete(Completion(operation.operation_id, error))

    def _add(self, staged: _Staged) -> None:
        """Locked.

        Raises:
            RuntimeError: the process has no room for a thread, and there is none that would take it up.
        """
        if not self._threads:
            self._begin(self._watch_deadlines, "staging-deadlines")
        if self._num_idle <= len(self._waiting) and len(self._threads) <= MOST_THREADS:
            try:
                self._begin(self._work, "staging")
            except RuntimeError:
                if len(self._threads) == 1:  # that which watches deadlines
                    raise
        self._waiting.append(staged)
        self._has_work.notify()
        if staged.operation.deadline_s < self._earliest_s:
            self._has_earlier.notify()

    def _begin(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        while self._carry_next():
            pass

    def _carry_next(self) -> bool:
        """False where there is nothing more to come."""
        staged = self._next()
        if staged is None:
            return False
        ended = self._carried_out(staged)
        with self._lock:
            self._num_under_way[staged.peer] -= 1
            if not self._num_under_way[staged.peer]:
                del self._num_under_way[staged.peer]
        self._complete(ended)
        return True

    def _next(self) -> _Staged | None:
        with self._lock:
            self._num_idle += 1
            self._has_work.wait_for(lambda: self._first() is not None or self._closing)
            self._num_idle -= 1
            place = self._first()
            if place is None:
                return None
            staged = self._waiting[place]
            del self._waiting[place]
            self._num_under_way[staged.peer] += 1
            return staged

    def _first(self) -> int | None:
        """The place of what may begin. Locked."""
        for place, staged in enumerate(self._waiting):
            if self._num_under_way[staged.peer] < MOST_PER_PEER:
                return place
        return None

    def _watch_deadlines(self) -> None:
        """Fails what has waited for a thread until its deadline."""
        while True:
            with self._lock:
                if self._closing:
                    return
                now = time.monotonic()
                late = [staged for staged in self._waiting if staged.operation.deadline_s <= now]
                if late:  # told apart by their deadlines: to compare operations is to look at their bytes
                    self._waiting = deque(staged for staged in self._waiting if staged.operation.deadline_s > now)
                self._earliest_s = min((staged.operation.deadline_s for staged in self._waiting), default=math.inf)
                if not late:
                    self._has_earlier.wait(min(self._earliest_s - now, threading.TIMEOUT_MAX))
            for staged in late:
                error = DeadlineExceeded("the deadline passed before the copy through memory of the host began")
                self._complete(Completion(staged.operation.operation_id, error))

    def _carried_out(self, staged: _Staged) -> Completion:
        number = staged.operation.operation_id
        try:
            with self._buffers.lent(staged.device) as buffer:
                return self._through(buffer, staged)
        except (TransferError, TimeoutError) as error:
            return Completion(number, error)
        except Exception as error:  # whatever it is, nobody may be left waiting
            _log.exception("memory of %s could not be moved", staged.device.name)
            return Completion(number, TransferError(f"memory of {staged.device.name} could not be moved: {error!r}"))

    def _through(self, buffer: memoryview, staged: _Staged) -> Completion:
        """In parts that fit, one after the other: so the bytes land in the order of the ranges, where that is asked for."""
        operation = staged.operation
        lane: Lane | None = None
        for pieces, ranges in cut(operation.pieces, operation.ranges, buffer.nbytes):
            part = buffer[: total_bytes(pieces)]
            if operation.kind is Kind.WRITE:
                copy(pieces, [part], write=True)
            ended = self._moved(staged, part, ranges)
            if ended.error is not None:
                return Completion(operation.operation_id, ended.error, ended.lane)
            lane = ended.lane
            if operation.kind is Kind.READ:
                copy(pieces, [part], write=False)
        return Completion(operation.operation_id, None, lane)

    def _moved(self, staged: _Staged, part: memoryview, ranges: Sequence[Range]) -> Completion:
        """How it ended: in this thread where the transport allows it."""
        if staged.operation.deadline_s <= time.monotonic():
            raise DeadlineExceeded("the deadline passed while bytes were copied through memory of the host")
        operation = msgspec.structs.replace(
            staged.operation, operation_id=self._next_id(), pieces=(part,), ranges=tuple(ranges)
        )
        (ended,) = staged.transport.move([operation])
        if ended is not None:
            return ended
        posted: SimpleQueue[Completion] = SimpleQueue()
        self._posted[operation.operation_id] = posted
        self._post(staged.transport, [operation])
        return posted.get()
