"""Memory of devices among memory by address. Views of it name their device, also in slices; they are addresses and lengths:
who looks at their bytes ends the process. In a process that has none of them, nothing here costs anything."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from typing import Final, NamedTuple

from mooncake_core.transfer import copying
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.cuda import find_cuda
from mooncake_core.transfer.device import Copy, Device, Driver
from mooncake_core.transfer.slices import pair

_DEVICE: Final = "mooncake_device"
"""The attribute of what a view is of."""
_made_views = False


@cache
def find_driver() -> Driver | None:
    """The driver of this machine's devices; None where there is none, or none that works."""
    return find_cuda()


def known_gpus() -> str:
    """For messages: which memory is a device's here."""
    return "the GPUs of NVIDIA's driver" + (
        ", which is not here or finds none (see the log)" if find_driver() is None else ""
    )


def device_view(address: int, num_bytes: int) -> memoryview | None:
    """A view of device memory; None where it is no device's, or not all of it one's. The driver is asked. Right as long as its
    owner keeps the memory."""
    driver = find_driver()
    device = driver.device_at(address) if driver is not None else None
    if driver is None or device is None or driver.device_at(address + num_bytes - 1) is not device:
        return None
    global _made_views
    _made_views = True
    held = (ctypes.c_char * num_bytes).from_address(address)
    setattr(held, _DEVICE, device)
    return memoryview(held).cast("B")


def has_device_views() -> bool:
    """Whether the process has ever seen device memory: what is to be asked first, where it matters how long that takes."""
    return _made_views


def device_of(view: memoryview) -> Device | None:
    """Whose memory a view is of; None for memory of the host."""
    return getattr(view.obj, _DEVICE, None) if _made_views else None


def device_among(views: Iterable[memoryview]) -> Device | None:
    """That of the first view which lies on a device; None where all are of the host."""
    if _made_views:
        for view in views:
            device: Device | None = getattr(view.obj, _DEVICE, None)
            if device is not None:
                return device
    return None


class _Pair(NamedTuple):
    device: Device | None
    target: memoryview
    source: memoryview


def copy(pieces: Sequence[memoryview], memories: Sequence[memoryview], *, write: bool) -> None:
    """As copying.copy, in order, where either end or both may lie on a device.

    Raises:
        TransferError: of a device's driver.
    """
    pairs = [(there, here) if write else (here, there) for here, there in pair(pieces, memories)]
    known = [_Pair(device_of(target) or device_of(source), target, source) for target, source in pairs]
    for device, together in groupby(known, lambda one: one.device):
        if device is not None:
            device.copy([Copy(address_of(one.target), address_of(one.source), one.target.nbytes) for one in together])
            continue
        host = [*together]
        copying.copy([one.target for one in host], [one.source for one in host], write=False)


def content_of(view: memoryview) -> bytes:
    """The bytes themselves, of the host's or a device's memory.

    Raises:
        TransferError: of a device's driver.
    """
    if device_of(view) is None:
        return bytes(view)
    read = bytearray(view.nbytes)
    copy([memoryview(read)], [view], write=False)
    return bytes(read)
