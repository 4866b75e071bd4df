"""Transport `local`: initiator and target are the same process; one memcpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mooncake_core.errors import TransferError
from mooncake_core.transfer.contract import Capabilities, Completion, Kind, Operation, TransportSettings
from mooncake_core.transfer.exporting import ExportingTransport, copy, uninterruptible


class LocalTransport(ExportingTransport):
    """Copies in the caller's thread; every operation is complete when `post` returns."""

    name: ClassVar[str] = "local"
    capabilities: ClassVar[Capabilities] = Capabilities(same_host_only=True)

    def __init__(self, settings: TransportSettings) -> None:
        super().__init__()

    def post(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            try:
                self._copy(operation)
            except TransferError as error:
                self.completions.add(Completion(operation.operation_id, error))
            else:
                self.completions.add(Completion(operation.operation_id))

    def _copy(self, operation: Operation) -> None:
        write = operation.kind is Kind.WRITE
        access = self.exports.enter(operation.path, operation.ranges, write=write, interrupt=uninterruptible)
        try:
            copy(operation.pieces, access.memories, write=write)
        finally:
            self.exports.leave(access)
