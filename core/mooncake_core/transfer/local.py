"""Transport `local`: initiator and target are the same process; one memcpy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

from mooncake_core.errors import TransferError
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
from mooncake_core.transfer.exports import Exports


class LocalTransport(Transport):
    """Copies in the caller's thread; every operation is complete when `post` returns."""

    name: ClassVar[str] = "local"
    capabilities: ClassVar[Capabilities] = Capabilities(same_host_only=True)

    def __init__(self, settings: TransportSettings) -> None:
        self._exports = Exports()
        self._regions: dict[int, memoryview] = {}
        self._handles = itertools.count(1)
        self._completions = Completions()

    def register(self, memory: memoryview) -> int:
        handle = next(self._handles)
        self._regions[handle] = memory
        return handle

    def unregister(self, handle: int) -> None:
        self._exports.withdraw_all(self._regions.pop(handle))

    def export(self, handle: int, *, writable: bool, ranges: Sequence[Range] | None = None) -> bytes:
        return self._exports.add(self._regions[handle], writable=writable, ranges=ranges)

    def withdraw(self, path: bytes) -> None:
        self._exports.withdraw(path)

    def post(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            try:
                self._copy(operation)
            except TransferError as error:
                self._completions.add(Completion(operation.operation_id, error))
            else:
                self._completions.add(Completion(operation.operation_id))

    def poll(self) -> list[Completion]:
        return self._completions.take()

    def fileno(self) -> int:
        return self._completions.fileno()

    def close(self) -> None:
        self._exports.withdraw_all()
        self._completions.close()

    def _copy(self, operation: Operation) -> None:
        write = operation.kind is Kind.WRITE
        access = self._exports.enter(
            operation.path, operation.remote_offset, operation.length, write=write, interrupt=_nothing
        )
        try:
            offset = 0
            for piece in operation.pieces:
                there = access.memory[offset : offset + piece.nbytes]
                if write:
                    there[:] = piece
                else:
                    piece[:] = there
                offset += piece.nbytes
        finally:
            self._exports.leave(access)


def _nothing() -> None:
    """A memcpy ends by itself."""
