"""A device without hardware: memory that no CPU may touch by its address, and a driver that copies it."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Sequence
from typing import Final

from mooncake_core.errors import TransferError
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.device import Copy, Device, DmaBuf, Driver

PROT_NONE: Final = 0


class StandInDevice(Device):
    """One file in memory, mapped twice: where its address is, whoever looks at it ends the process, as with a GPU; beside that
    where only this driver looks."""

    def __init__(self, num_bytes: int, number: int = 0) -> None:
        self.name = f"cuda:{number}"
        self.pci_address = f"0000:{number + 1:02x}:00.0"
        self.num_bytes = num_bytes
        self._file = os.memfd_create(self.name, os.MFD_CLOEXEC)
        os.ftruncate(self._file, num_bytes)
        self._hidden = memoryview(mmap.mmap(self._file, num_bytes, prot=PROT_NONE))
        self._open = memoryview(mmap.mmap(self._file, num_bytes))
        self.address = address_of(self._hidden)
        """Of its memory, page-aligned."""
        self.pinned: dict[int, int] = {}
        """Bytes, by address."""
        self.num_copies = 0
        self.copies_until_failure: int | None = None
        """None: none fails."""
        self.has_dma_buf = True
        self.moving = threading.Event()
        """Unset, copies wait."""
        self.moving.set()

    @property
    def content(self) -> memoryview:
        """Its memory, for tests to look at and to fill."""
        return self._open

    def close(self) -> None:
        """Gives the file back; the memory ends with the last view."""
        os.close(self._file)

    def holds(self, address: int) -> bool:
        """Whether it is the device's."""
        return self.address <= address < self.address + self.num_bytes

    def open_address(self, address: int, num_bytes: int) -> int:
        """Where the CPU finds memory of the device, or of the host.

        Raises:
            TransferError: it reaches beyond the device's.
        """
        if not self.holds(address):
            return address
        if address + num_bytes > self.address + self.num_bytes:
            raise TransferError(f"{self.name}: {num_bytes} bytes at {address:#x} go beyond its memory")
        return address_of(self._open) + address - self.address

    def copy(self, copies: Sequence[Copy]) -> None:
        self.moving.wait()
        for target, source, num_bytes in copies:
            if self.copies_until_failure == 0:
                raise TransferError(f"{self.name}: the driver refuses to copy")
            if self.copies_until_failure is not None:
                self.copies_until_failure -= 1
            self.num_copies += 1
            ctypes.memmove(self.open_address(target, num_bytes), self.open_address(source, num_bytes), num_bytes)

    def pin(self, address: int, num_bytes: int) -> None:
        assert address not in self.pinned
        self.pinned[address] = num_bytes

    def unpin(self, address: int) -> None:
        del self.pinned[address]

    def dma_buf(self, address: int, num_bytes: int) -> DmaBuf:
        if not self.has_dma_buf:
            raise TransferError(f"{self.name}: the driver has no dma-buf")
        return DmaBuf(os.dup(self._file), address % mmap.PAGESIZE)


class StandInDriver(Driver):
    """Of stand-ins, to be what `device_memory.find_driver` finds."""

    def __init__(self, *devices: StandInDevice) -> None:
        self.devices = devices
        self.num_asked = 0

    def device_at(self, address: int) -> StandInDevice | None:
        self.num_asked += 1
        return next((device for device in self.devices if device.holds(address)), None)
