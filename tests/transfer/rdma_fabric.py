"""Devices of no hardware, as the rdma transport uses them: queue pairs whose work requests are copies in memory, made by a thread
for each. They fail when they are told to."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import itertools
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mooncake_core.errors import PathFailed, TransferError
from mooncake_core.testing.device_memory import StandInDriver
from mooncake_core.transfer import device_memory
from mooncake_core.transfer.contract import TransportSettings
from mooncake_core.transfer.device import DmaBuf
from mooncake_rdma.gpudirect import GpuDirect
from mooncake_rdma.ports import ACTIVE, Fabric, Gid, Port
from mooncake_rdma.requests import Ended, PortHandle, WorkRequest
from mooncake_rdma.transport import RdmaTransport

FABRIC = Fabric.ROCE_V2_IPV4


@dataclass(slots=True)
class Region:
    """Registered memory."""

    network: Network
    address: int
    num_bytes: int
    writable: bool
    local_key: int
    remote_key: int
    shift: int = 0
    opened: int | None = None
    """Where the CPU finds it, for memory of a GPU."""
    is_open: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while somebody copies."""

    def close(self) -> None:
        with self.lock:
            self.is_open = False
            self.network.regions.pop(self.remote_key, None)

    def where(self, address: int) -> int:
        """The CPU finds it."""
        return address if self.opened is None else self.opened + address - self.address

    def allows(self, address: int, num_bytes: int, *, write: bool) -> bool:
        inside = self.address <= address and address + num_bytes <= self.address + self.num_bytes
        return self.is_open and inside and (self.writable or not write)


class Network:
    """What the devices of all processes have in common. Here these are objects of one process."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}
        """That are open, by key."""
        self.pairs: set[QueuePair] = set()
        """That are open."""
        self.keys = itertools.count(0x100)
        self.moving = threading.Event()
        """Unset, work requests wait."""
        self.moving.set()
        self.down: set[str] = set()
        """Devices whose link is down: what is asked of them stands still."""
        self.stuck: set[str] = set()
        """As that, but the link looks well."""
        self.failing: set[str] = set()
        """Devices whose work requests fail as if nobody answered."""
        self.refusing: dict[str, Exception] = {}
        """What devices raise where work requests are posted."""
        self.mute: dict[str, set[str]] = {"wait_is_over": set(), "completed": set()}
        """Devices that cannot say any more what has completed, by the method that raises."""
        self.most_region_bytes = 1 << 40
        self.gpu_ways = {"peermem", "dma-buf"}
        """By which devices take memory of GPUs."""
        self.sysfs = Path("/nowhere")
        """Where the transport looks for modules of the kernel."""
        self.most_requests = 64
        """That each device has completions for."""
        self.most_under_way = 0
        """At once, of one device; what was not told of yet is."""
        self.num_failures: Counter[str] = Counter()
        self.num_signalled: Counter[str] = Counter()
        self.num_requests: dict[str, int] = {}
        """That each device has carried out."""


class Device:
    """One port."""

    most_segments = 4
    send_depth = 32

    def __init__(self, network: Network, name: str, place: int) -> None:
        self.network = network
        self.name = name
        self.most_requests = network.most_requests
        self.most_region_bytes = network.most_region_bytes
        address = ipaddress.IPv6Address(f"::ffff:10.0.{place}.1")
        self.port = Port(name, 1, ACTIVE, 100.0, 0, (Gid(0, address, FABRIC),))
        self._numbers = itertools.count(17)
        self._lock = threading.Lock()
        self._ended: list[Ended] = []
        self._under_way: Counter[int] = Counter()
        """By queue pair."""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def is_active(self) -> bool:
        return self.name not in self.network.down

    def fileno(self) -> int:
        return self._fd

    def wait_is_over(self) -> None:
        self._speak("wait_is_over")
        os.eventfd_read(self._fd)

    def completed(self, most: int = 4) -> list[Ended]:
        self._speak("completed")
        with self._lock:
            found, self._ended = self._ended[:most], self._ended[most:]
            return found

    def _speak(self, method: str) -> None:
        if self.name in self.network.mute[method]:
            raise PathFailed(f"{self.port} does not say what has completed", errno=errno.ENODEV)

    def end(self, ended: Ended, *, is_told: bool) -> None:
        with self._lock:
            self._under_way[ended.queue_pair] -= 1
            if is_told:
                self._ended.append(ended)
                os.eventfd_write(self._fd, 1)

    def begin(self, queue_pair: int, count: int) -> None:
        """So many requests."""
        with self._lock:
            self._under_way[queue_pair] += count
            now = self._under_way.total() + len(self._ended)
            self.network.most_under_way = max(self.network.most_under_way, now)

    def forget(self, queue_pair: int) -> None:
        """It was closed."""
        with self._lock:
            del self._under_way[queue_pair]

    def register(self, address: int, num_bytes: int, *, is_remote: bool = False, writable: bool = False) -> Region:
        assert num_bytes <= self.most_region_bytes
        key = next(self.network.keys)
        region = Region(self.network, address, num_bytes, writable, key, key)
        self.network.regions[region.remote_key] = region
        return region

    def register_gpu_memory(
        self,
        address: int,
        num_bytes: int,
        dma_buf: DmaBuf | None,
        *,
        is_remote: bool = False,
        writable: bool = False,
    ) -> Region:
        way = "peermem" if dma_buf is None else "dma-buf"
        if way not in self.network.gpu_ways:
            raise TransferError(f"{self.port} does not take {way}")
        driver = device_memory.find_driver()
        assert isinstance(driver, StandInDriver)
        gpu = driver.device_at(address)
        assert gpu is not None
        region = self.register(address, num_bytes, is_remote=is_remote, writable=writable)
        region.opened = gpu.open_address(address, num_bytes)
        if dma_buf is not None:
            assert os.fstat(dma_buf.descriptor).st_size == gpu.num_bytes
            region.shift = dma_buf.offset - address
            region.address += region.shift
        return region

    def queue_pair(self, fabric: Fabric) -> QueuePair:
        return QueuePair(self, next(self._numbers))

    def close(self) -> None:
        os.close(self._fd)


class QueuePair:
    """Carries out what is posted, in order, until something fails."""

    def __init__(self, device: Device, number: int) -> None:
        self._device = device
        self.number = number
        device.network.pairs.add(self)
        self.handle = PortHandle(number, 0, 0, 5, b"", 16)
        self.state = "RTS"
        self._requests: queue.SimpleQueue[WorkRequest | None] = queue.SimpleQueue()
        self._closed = False
        self._thread: threading.Thread | None = None

    def connect(self, other: PortHandle) -> None:
        pass

    def post(self, requests: Sequence[WorkRequest]) -> None:
        if (error := self._device.network.refusing.get(self._device.name)) is not None:
            raise error
        assert len(requests) <= self._device.send_depth
        assert all(len(request.segments) <= self._device.most_segments for request in requests)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fabric", daemon=True)
            self._thread.start()
        self._device.begin(self.number, len(requests))
        for request in requests:
            self._requests.put(request)

    def close(self) -> None:
        self._closed = True
        if self._thread is not None:
            self._requests.put(None)
            self._thread.join()
        self._device.forget(self.number)
        self._device.network.pairs.discard(self)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            status = "WR_FLUSH_ERR" if self.state == "ERR" else self._carried_out(request)
            if self._closed:
                return
            if status != "SUCCESS":
                self.state = "ERR"
            is_told = status != "SUCCESS" or request.is_signalled
            self._device.end(Ended(request.number, self.number, status), is_told=is_told)

    def _carried_out(self, request: WorkRequest) -> str:
        network, name = self._device.network, self._device.name
        while not (network.moving.wait(0.01) and name not in network.down | network.stuck):
            if self._closed:
                return "WR_FLUSH_ERR"
            time.sleep(0.001)
        if name in network.failing:
            network.num_failures[name] += 1
            return "RETRY_EXC_ERR"
        region = network.regions.get(request.remote_key)
        if region is None:
            return "REM_ACCESS_ERR"
        num_bytes = sum(length for _, length, _ in request.segments)
        with region.lock:
            if not region.allows(request.remote_address, num_bytes, write=not request.is_read):
                return "REM_ACCESS_ERR"
            self._copy(request, region)
        network.num_signalled[name] += request.is_signalled
        network.num_requests[name] = network.num_requests.get(name, 0) + 1
        return "SUCCESS"

    def _copy(self, request: WorkRequest, region: Region) -> None:
        there = region.where(request.remote_address)
        for here, length, key in request.segments:
            known = self._device.network.regions.get(key)
            assert request.is_inline or (known is not None and known.allows(here, length, write=False))
            near = here if known is None else known.where(here)
            target, source = (near, there) if request.is_read else (there, near)
            ctypes.memmove(target, source, length)
            there += length


def transport_on(network: Network, names: Sequence[str] = ("nic0", "nic1")) -> type[RdmaTransport]:
    """The transport, with devices of this network."""

    class FabricTransport(RdmaTransport):
        def open_devices(self) -> list[Any]:
            return [Device(network, name, place) for place, name in enumerate(names)]

        def __init__(self, settings: TransportSettings) -> None:
            super().__init__(settings)
            self._gpu_direct = GpuDirect(self._devices, network.sysfs)

    return FabricTransport
