"""What is asked of a device with memory of its own, a GPU, and of its driver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple


class Copy(NamedTuple):
    """Bytes to copy. At least one of the addresses is the device's, the other one any of the process."""

    target: int
    source: int
    num_bytes: int


class DmaBuf(NamedTuple):
    """Device memory as other devices of the machine are given it."""

    descriptor: int
    """Of the dma-buf; to be closed by who asked."""
    offset: int
    """In it, of the first byte asked for."""


class Device(ABC):
    """One device. Any thread; what takes long leaves the interpreter to others.

    What the device still computes is not waited for: a program that fills memory by kernels synchronises before it moves it.
    """

    name: str
    """As cuda:0, as the process counts."""
    pci_address: str
    """As sysfs names it, 0000:17:00.0: another process may count otherwise."""

    @abstractmethod
    def copy(self, copies: Sequence[Copy]) -> None:
        """Copies in order; all has been copied when it returns.

        Raises:
            TransferError: the driver refuses; says why. Nothing is being copied any more, some of it may have been.
        """

    @abstractmethod
    def pin(self, address: int, num_bytes: int) -> None:
        """Makes memory of the host quick to copy to and from.

        Raises:
            TransferError: the driver refuses; says why.
        """

    @abstractmethod
    def unpin(self, address: int) -> None:
        """Ends that, before the memory is given back."""

    @abstractmethod
    def dma_buf(self, address: int, num_bytes: int) -> DmaBuf:
        """The device's memory, for another device to register.

        Raises:
            TransferError: the driver has no such thing; says why.
        """


class Driver(ABC):
    """Knows the devices of the process."""

    @abstractmethod
    def device_at(self, address: int) -> Device | None:
        """Whose memory lies there; None where it is no device's."""
