"""Transport `local`: initiator and target are the same process; one memcpy, or one by the driver of a device."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import ClassVar

from mooncake_core.errors import DeadlineExceeded, PathFailed, TransferError
from mooncake_core.transfer import device_memory
from mooncake_core.transfer.contract import Capabilities, Completion, Kind, Operation, TransportSettings
from mooncake_core.transfer.copying import copy
from mooncake_core.transfer.exporting import ExportingTransport, uninterruptible


class LocalTransport(ExportingTransport):
    """Copies in the caller's thread; every operation is complete when `post` returns."""

    name: ClassVar[str] = "local"
    capabilities: ClassVar[Capabilities] = Capabilities(
        same_host_only=True, same_process_only=True, in_order=True, device_memory=True
    )

    def __init__(self, settings: TransportSettings) -> None:
        super().__init__(settings)
        self._owner = settings.owner
        self._closing = False

    def post(self, operations: Sequence[Operation]) -> None:
        for completion in self.move(operations):
            self.completions.add(completion)

    def move(self, operations: Sequence[Operation]) -> list[Completion]:
        return [self._complete(operation) for operation in operations]

    def reaches_devices_of(self, pieces: Sequence[memoryview]) -> bool:
        return True

    def close(self) -> None:
        self._closing = True
        super().close()

    def _complete(self, operation: Operation) -> Completion:
        try:
            self._copy(operation)
        except (TransferError, DeadlineExceeded) as error:
            return Completion(operation.operation_id, error)
        return Completion(operation.operation_id)

    def _copy(self, operation: Operation) -> None:
        if self._closing:
            raise PathFailed(f"the transport of {self._owner} was closed", path=self.name, errno=errno.ESHUTDOWN)
        if operation.deadline_s <= time.monotonic():
            raise DeadlineExceeded("the deadline passed before the copy began")
        write = operation.kind is Kind.WRITE
        access = self.exports.enter(operation.path, operation.ranges, write=write, interrupt=uninterruptible)
        try:
            move = device_memory.copy if device_memory.has_device_views() else copy
            move(operation.pieces, access.memories, write=write)
        finally:
            self.exports.leave(access)
