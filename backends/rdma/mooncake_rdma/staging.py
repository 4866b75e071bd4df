"""Pinned memory through which bytes go whose own memory is not registered."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final, NamedTuple

from mooncake_core.transfer.addresses import address_of
from mooncake_rdma.messages import STAGED_BYTES

if TYPE_CHECKING:
    from mooncake_rdma.verbs import Device, MemoryRegion

SLOTS: Final = 16


class Slot(NamedTuple):
    """Room for one message."""

    view: memoryview
    address: int


class Staging:
    """Of one connection; made when it is first needed. One thread at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._region: MemoryRegion | None = None
        self._free: list[Slot] = []

    @property
    def local_key(self) -> int:
        """Of all slots."""
        assert self._region is not None
        return self._region.local_key

    def take(self) -> Slot | None:
        """None where all are in use.

        Raises:
            TransferError: the memory cannot be pinned.
        """
        if self._region is None:
            view = memoryview(mmap.mmap(-1, SLOTS * STAGED_BYTES))
            address = address_of(view)
            self._region = self._device.register(address, view.nbytes)
            starts = range(0, view.nbytes, STAGED_BYTES)
            self._free = [Slot(view[start : start + STAGED_BYTES], address + start) for start in starts]
        return self._free.pop() if self._free else None

    def give_back(self, slot: Slot) -> None:
        """Its message has ended."""
        self._free.append(slot)

    def close(self) -> None:
        """Nothing uses it any more."""
        self._free.clear()
        if self._region is not None:
            self._region.close()
