"""A transport without a network, whose operations are delayed, reordered, and fail when told to.

No code of the far end runs: data moves between the two memories when the operation completes.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Sequence
from typing import ClassVar

from mooncake_core.errors import DeadlineExceeded, PathFailed, TransferError
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
from mooncake_core.transfer.exports import KEY_BYTES, Exports

LONGEST_DELAY_S = 0.002


class Hub:
    """The network between memory transports."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.transports: dict[bytes, MemoryTransport] = {}
        self.failing: set[str] = set()
        """Owners that cannot be reached."""
        self.stalled: set[str] = set()
        """Owners that never answer."""

    def transport(self) -> type[MemoryTransport]:
        """A transport class on this hub, as the engine and the contract suite take it."""
        return type("HubTransport", (MemoryTransport,), {"hub": self})


class MemoryTransport(Transport):
    """See the module; made through Hub.transport."""

    name: ClassVar[str] = "memory"
    capabilities: ClassVar[Capabilities] = Capabilities()
    hub: ClassVar[Hub]

    def __init__(self, settings: TransportSettings) -> None:
        self.owner = settings.owner
        self.exports = Exports()
        self._address = settings.incarnation.to_bytes(8, "little") + id(self).to_bytes(8, "little")
        self.hub.transports[self._address] = self
        self._regions: dict[int, memoryview] = {}
        self._handles = itertools.count(1)
        self._completions = Completions()
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Operation]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="memory-transport", daemon=True)
        self._thread.start()

    def register(self, memory: memoryview) -> int:
        handle = next(self._handles)
        self._regions[handle] = memory
        return handle

    def unregister(self, handle: int) -> None:
        self.exports.withdraw_all(self._regions.pop(handle))

    def export(self, handle: int, *, writable: bool, ranges: Sequence[Range] | None = None) -> bytes:
        return self._address + self.exports.add(self._regions[handle], writable=writable, ranges=ranges)

    def withdraw(self, path: bytes) -> None:
        self.exports.withdraw(path[-KEY_BYTES:])

    def post(self, operations: Sequence[Operation]) -> None:
        with self._changed:
            for operation in operations:
                delay = self.hub.random.uniform(0, LONGEST_DELAY_S)
                self._due.append((time.monotonic() + delay, operation.operation_id, operation))
            self._due.sort()
            self._changed.notify()

    def poll(self) -> list[Completion]:
        return self._completions.take()

    def fileno(self) -> int:
        return self._completions.fileno()

    def close(self) -> None:
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.hub.transports.pop(self._address, None)
        self.exports.withdraw_all()
        self._completions.close()

    def _work(self) -> None:
        while (operation := self._next()) is not None:
            try:
                self._move(operation)
            except (TransferError, TimeoutError) as error:
                self._completions.add(Completion(operation.operation_id, error))
            else:
                self._completions.add(Completion(operation.operation_id))
        for _, number, _ in self._due:
            self._completions.add(Completion(number, PathFailed(f"the transport of {self.owner} was closed")))

    def _next(self) -> Operation | None:
        """The next operation once it is due; None at the end."""
        with self._changed:
            while not self._closing:
                patience = self._due[0][0] - time.monotonic() if self._due else None
                if patience is not None and patience <= 0:
                    return self._due.pop(0)[2]
                self._changed.wait(patience)
            return None

    def _move(self, operation: Operation) -> None:
        peer = self.hub.transports.get(operation.path[:-KEY_BYTES])
        if peer is None or peer.owner in self.hub.failing:
            raise PathFailed("the peer cannot be reached", errno=111)
        if peer.owner in self.hub.stalled:
            time.sleep(max(0.0, operation.deadline_s - time.monotonic()))
        if operation.deadline_s <= time.monotonic():
            raise DeadlineExceeded("the peer did not answer in time")
        write = operation.kind is Kind.WRITE
        access = peer.exports.enter(
            operation.path[-KEY_BYTES:], operation.remote_offset, operation.length, write=write, interrupt=_nothing
        )
        try:
            _copy(operation, access.memory)
        finally:
            peer.exports.leave(access)


def _copy(operation: Operation, there: memoryview) -> None:
    offset = 0
    for piece in operation.pieces:
        if operation.kind is Kind.WRITE:
            there[offset : offset + piece.nbytes] = piece
        else:
            piece[:] = there[offset : offset + piece.nbytes]
        offset += piece.nbytes


def _nothing() -> None:
    """A copy in memory ends by itself."""


__all__ = ["Hub", "MemoryTransport"]
