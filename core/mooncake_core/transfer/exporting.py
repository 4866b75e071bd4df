"""What transports share whose far end checks each access in software: regions, exports, and completions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from mooncake_core.transfer.completions import Completions
from mooncake_core.transfer.contract import Completion, Range, Transport, TransportSettings
from mooncake_core.transfer.exports import Exports


class ExportingTransport(Transport):
    """Subclasses move the bytes, and say how a key becomes a path and back."""

    def __init__(self, settings: TransportSettings) -> None:
        self.exports = Exports()
        self.completions = Completions(settings.deliver)
        self._regions: dict[int, memoryview] = {}
        self._handles = itertools.count(1)

    def path_of(self, key: bytes) -> bytes:
        """What peers need to find the export of a key; by default the key itself."""
        return key

    def key_of(self, path: bytes) -> bytes:
        """The key in a path of ours."""
        return path

    def register(self, memory: memoryview, descriptor: int | None = None) -> int:
        handle = next(self._handles)
        self._regions[handle] = memory
        return handle

    def unregister(self, handle: int) -> None:
        self.exports.withdraw_all(self._regions.pop(handle))

    def export(self, handle: int, *, writable: bool, ranges: Sequence[Range] | None = None) -> bytes:
        return self.path_of(self.exports.add(self._regions[handle], writable=writable, ranges=ranges))

    def withdraw(self, path: bytes) -> None:
        self.exports.withdraw(self.key_of(path))

    def poll(self) -> list[Completion]:
        return self.completions.take()

    def fileno(self) -> int:
        return self.completions.fileno()

    def close(self) -> None:
        """To be called last by subclasses."""
        self.exports.withdraw_all()
        self.completions.close()


def uninterruptible() -> None:
    """The interrupt of an access that ends by itself: a copy in memory."""
