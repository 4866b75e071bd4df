"""Memory of GPUs that NICs read and write without a detour (GPUDirect RDMA), where the kernel lets them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mooncake_core.errors import TransferError
from mooncake_core.transfer.contract import Range
from mooncake_core.transfer.device import Device as Gpu
from mooncake_core.transfer.device import DmaBuf
from mooncake_core.transfer.topology import SYSFS

if TYPE_CHECKING:
    from mooncake_rdma.verbs import Device, MemoryRegion

ADVICE: Final = (
    "load nvidia-peermem (`modprobe nvidia-peermem`), or use NVIDIA's open kernel modules on Linux 5.12 or newer, which "
    "have dma-buf"
)

_log = logging.getLogger(__name__)

Pinned = list[list["MemoryRegion"]]
"""By device, and then by part."""


def has_peer_memory(sysfs: Path = SYSFS) -> bool:
    """Whether a module of the kernel lets NICs register memory of NVIDIA's GPUs by its address."""
    peers = sysfs / "kernel/mm/memory_peers"
    return (sysfs / "module/nvidia_peermem").is_dir() or (peers.is_dir() and any(peers.glob("nv*")))


def pin_all(
    devices: Sequence[Device], parts: Sequence[Range], register: Callable[[Device, Range], MemoryRegion]
) -> Pinned:
    """Parts of memory pinned for each device; what is made so far is given back where one refuses."""
    with ExitStack() as made:
        pinned: Pinned = []
        for device in devices:
            pinned.append([])
            for part in parts:
                region = register(device, part)
                made.callback(region.close)
                pinned[-1].append(region)
        made.pop_all()
    return pinned


class GpuDirect:
    """Of one transport."""

    def __init__(self, devices: Sequence[Device], sysfs: Path = SYSFS) -> None:
        self._devices = devices
        self._sysfs = sysfs
        self._was_refused = False

    def pin(
        self, gpu: Gpu, parts: Sequence[Range], *, is_remote: bool = False, writable: bool = False
    ) -> Pinned | None:
        """Memory of a GPU, by its address, pinned for each device: by address, or else by dma-buf. None where neither is
        possible: the log says once why, and what to do."""
        reasons = []
        if has_peer_memory(self._sysfs):
            try:
                return pin_all(self._devices, parts, _by_address(is_remote, writable))
            except TransferError as error:
                reasons.append(f"nvidia-peermem: {error}")
        else:
            reasons.append("nvidia-peermem is not loaded")
        try:
            return self._pin_dma_buf(gpu, parts, is_remote, writable)
        except TransferError as error:
            reasons.append(f"dma-buf: {error}")
        if not self._was_refused:
            self._was_refused = True
            _log.warning(
                "NICs do not reach memory of %s, which goes through memory of the host: %s. To change that, %s",
                gpu.name,
                "; ".join(reasons),
                ADVICE,
            )
        return None

    def _pin_dma_buf(self, gpu: Gpu, parts: Sequence[Range], is_remote: bool, writable: bool) -> Pinned:
        """One dma-buf for each part; the regions keep it."""
        buffers: dict[Range, DmaBuf] = {}
        try:
            for part in parts:
                buffers[part] = gpu.dma_buf(part.offset, part.length)
            return pin_all(
                self._devices,
                parts,
                lambda device, part: device.register_gpu_memory(
                    part.offset, part.length, buffers[part], is_remote=is_remote, writable=writable
                ),
            )
        finally:
            for buffer in buffers.values():
                os.close(buffer.descriptor)


def _by_address(is_remote: bool, writable: bool) -> Callable[[Device, Range], MemoryRegion]:
    return lambda device, part: device.register_gpu_memory(
        part.offset, part.length, None, is_remote=is_remote, writable=writable
    )
