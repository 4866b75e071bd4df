"""A transport without a network, whose operations are delayed, reordered, and fail when told to.

No code of the far end runs: data moves between the two memories when the operation completes.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import ClassVar

from mooncake_core.errors import DeadlineExceeded, PathFailed, TransferError
from mooncake_core.transfer.contract import Capabilities, Completion, Kind, Operation, TransportSettings
from mooncake_core.transfer.copying import copy
from mooncake_core.transfer.exporting import ExportingTransport, uninterruptible
from mooncake_core.transfer.exports import KEY_BYTES

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


class MemoryTransport(ExportingTransport):
    """See the module; made through Hub.transport."""

    name: ClassVar[str] = "memory"
    capabilities: ClassVar[Capabilities] = Capabilities()
    hub: ClassVar[Hub]

    def __init__(self, settings: TransportSettings) -> None:
        super().__init__(settings)
        self.owner = settings.owner
        self._address = settings.incarnation.to_bytes(8, "little") + id(self).to_bytes(8, "little")
        self.hub.transports[self._address] = self
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Operation]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="memory-transport", daemon=True)
        self._thread.start()

    def path_of(self, key: bytes) -> bytes:
        return self._address + key

    def key_of(self, path: bytes) -> bytes:
        return path[-KEY_BYTES:]

    def post(self, operations: Sequence[Operation]) -> None:
        with self._changed:
            for operation in operations:
                if self._closing:
                    self.completions.add(Completion(operation.operation_id, self._closed()))
                    continue
                delay = self.hub.random.uniform(0, LONGEST_DELAY_S)
                self._due.append((time.monotonic() + delay, operation.operation_id, operation))
            self._due.sort()
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self.hub.transports.pop(self._address, None)
        super().close()

    def _work(self) -> None:
        while (operation := self._next()) is not None:
            try:
                self._move(operation)
            except (TransferError, TimeoutError) as error:
                self.completions.add(Completion(operation.operation_id, error))
            else:
                self.completions.add(Completion(operation.operation_id))
        for _, number, _ in self._due:
            self.completions.add(Completion(number, self._closed()))

    def _closed(self) -> PathFailed:
        return PathFailed(f"the transport of {self.owner} was closed")

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
            operation.path[-KEY_BYTES:],
            operation.ranges,
            write=write,
            interrupt=uninterruptible,
        )
        try:
            copy(operation.pieces, access.memories, write=write)
        finally:
            peer.exports.leave(access)


__all__ = ["Hub", "MemoryTransport"]
