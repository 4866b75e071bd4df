"""Transport `rdma`, as the Transfer Engine sees it."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from mooncake_core.errors import DeadlineExceeded, OutOfRange, PathFailed, TransferError
from mooncake_core.transfer.addresses import address_of
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
from mooncake_core.transfer.device import Device as Gpu
from mooncake_core.transfer.device_memory import device_among, device_of, has_device_views
from mooncake_core.transfer.exports import check_ranges, first_outside, merged
from mooncake_core.transfer.topology import location_of, location_of_gpu, matrix, read_inventory
from mooncake_rdma.connection import Nearness, Registered, Work
from mooncake_rdma.gpudirect import GpuDirect, Pinned, pin_all
from mooncake_rdma.initiator import Initiator
from mooncake_rdma.messages import Limits, Message, Segment, messages, targets
from mooncake_rdma.paths import RdmaPath, address_of_port, divided, hulls
from mooncake_rdma.ports import read_ports, usable_ports
from mooncake_rdma.target import Target

if TYPE_CHECKING:
    from mooncake_rdma.verbs import Device, MemoryRegion

DEVICES_VARIABLE: Final = "MOONCAKE_RDMA_DEVICES"
"""Names of the devices to use, with commas; all where it is not set."""


class _Chunk:
    """A part of registered memory that is one memory region of each device."""

    __slots__ = ("address", "end", "near", "on_gpu", "pinned", "shift")

    def __init__(
        self, address: int, num_bytes: int, pinned: Sequence[MemoryRegion], near: Nearness, *, on_gpu: bool
    ) -> None:
        self.address = address
        self.end = address + num_bytes
        self.pinned = pinned
        self.near = near
        self.on_gpu = on_gpu
        self.shift = pinned[0].shift
        """The same for all devices."""

    def local_key(self, place: int) -> int:
        return self.pinned[place].local_key


class _Region:
    """Registered memory: in one chunk, where devices take memory regions of its size; in none where it is memory of a GPU that
    they do not reach."""

    __slots__ = ("address", "chunks", "exports", "gpu", "num_bytes")

    def __init__(self, address: int, num_bytes: int, gpu: Gpu | None, chunks: Sequence[_Chunk]) -> None:
        self.address = address
        self.num_bytes = num_bytes
        self.gpu = gpu
        self.chunks = chunks
        self.exports: set[int] = set()

    def close(self) -> None:
        """Its memory is not pinned any more."""
        for chunk in self.chunks:
            for pinned in chunk.pinned:
                pinned.close()


class RdmaTransport(Transport):
    """Reads and writes by the NICs of both ends; no code of the peer runs meanwhile."""

    name: ClassVar[str] = "rdma"
    capabilities: ClassVar[Capabilities] = Capabilities(is_rdma=True, in_order=True, device_memory=True)

    def __init__(self, settings: TransportSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._handles = itertools.count(1)
        self._export_numbers = itertools.count(1)
        self._regions: dict[int, _Region] = {}
        self._by_address: tuple[list[int], list[_Chunk]] = ([], [])
        """Chunks in the order of their addresses; never changed, only replaced."""
        self._exports: dict[int, list[MemoryRegion]] = {}
        self._closed = False
        self._inventory = read_inventory()
        self._matrix = matrix(self._inventory, settings.topology)
        with ExitStack() as made:
            self._devices = self.open_devices()
            for device in self._devices:
                made.callback(device.close)
            self._gpu_direct = GpuDirect(self._devices)
            self._ports = [address_of_port(device.port) for device in self._devices]
            self._most_region_bytes = min(device.most_region_bytes for device in self._devices)
            self._limits = Limits(min(device.most_segments for device in self._devices))
            self._target = Target(settings, self._devices)
            made.callback(self._target.close)
            self._completions = Completions(settings.deliver)
            made.callback(self._completions.close)
            self._initiator = Initiator(
                self._devices,
                self._ports,
                owner=settings.owner,
                secret=settings.secret,
                lanes=settings.lanes,
                weights=settings.weights,
                messages=self._messages,
                complete=self._completions.add,
            )
            made.pop_all()

    def open_devices(self) -> list[Device]:
        """Those to use.

        Raises:
            PluginUnavailable: there is none, or pyverbs is missing; says what to do.
            PathFailed: one cannot be opened.
        """
        named = [name for name in os.environ.get(DEVICES_VARIABLE, "").split(",") if name]
        allowed = [port for port in read_ports() if self._settings.weights.of_device(port.device)]
        ports = usable_ports(allowed, named)
        from mooncake_rdma.verbs import Device  # looks for pyverbs

        with ExitStack() as made:
            devices: list[Device] = []
            for port in ports:
                device = Device(port)
                made.callback(device.close)
                devices.append(device)
            made.pop_all()
        return devices

    def register(self, memory: memoryview, descriptor: int | None = None) -> int:
        handle = next(self._handles)
        address = address_of(memory)
        gpu = device_of(memory)
        parts = divided([Range(address, memory.nbytes)], self._most_region_bytes)
        chunks = [
            _Chunk(
                part.offset,
                part.length,
                of_part,
                self._near(self._location_of(part.offset, gpu)),
                on_gpu=gpu is not None,
            )
            for part, of_part in zip(parts, zip(*(self._pin(gpu, parts) or ()), strict=True), strict=False)
        ]
        region = _Region(address, memory.nbytes, gpu, chunks)
        with self._lock:
            self._regions[handle] = region
            self._index_regions()
        return handle

    def unregister(self, handle: int) -> None:
        with self._lock:
            region = self._regions.pop(handle)
            self._index_regions()
        for export in list(region.exports):
            self._end_export(export)
        region.close()

    def export(self, handle: int, *, writable: bool, ranges: Sequence[Range] | None = None) -> bytes | None:
        region = self._regions[handle]
        check_ranges(ranges, region.num_bytes)
        allowed = merged(ranges or [Range(0, region.num_bytes)])
        covering = divided(hulls([part for part in allowed if part.length]), self._most_region_bytes)
        parts = [Range(region.address + part.offset, part.length) for part in covering]
        pinned = self._pin(region.gpu, parts, is_remote=True, writable=writable) if region.chunks else None
        if pinned is None:
            return None
        shifts = [each.shift for each in pinned[0]]
        is_one = len(set(shifts)) == 1  # then peers that know nothing of shifts find it too
        number = next(self._export_numbers)
        with self._lock:
            self._exports[number] = [each for of_device in pinned for each in of_device]
            region.exports.add(number)
        return msgspec.msgpack.encode(
            RdmaPath(
                host=self._settings.listen_host,
                port=self._target.port,
                incarnation=self._settings.incarnation,
                export=number,
                address=region.address + shifts[0] if is_one else region.address,
                writable=writable,
                starts=[part.offset for part in allowed],
                ends=[part.offset + part.length for part in allowed],
                hull_starts=[part.offset for part in covering],
                hull_ends=[part.offset + part.length for part in covering],
                ports=self._ports,
                keys=[[each.remote_key for each in of_device] for of_device in pinned],
                shifts=[] if is_one else shifts,
            )
        )

    def withdraw(self, path: bytes) -> None:
        named = _decode(path)
        if named.incarnation == self._settings.incarnation and named.port == self._target.port:
            self._end_export(named.export)

    def post(self, operations: Sequence[Operation]) -> None:
        works = []
        for operation in operations:
            path = _decode(operation.path)
            error = _refusal(operation, path)
            if error is not None:
                self._completions.add(Completion(operation.operation_id, error))
            elif self._closed or operation.length:
                works.append(Work(operation, path, near=self._near_operation(operation)))
            else:
                self._completions.add(Completion(operation.operation_id))
        self._initiator.start(works)

    def reaches_devices_of(self, pieces: Sequence[memoryview]) -> bool:
        on_devices = [piece for piece in pieces if device_of(piece) is not None]
        return all(segment.region is not None for piece in on_devices for segment in self._segments(piece))

    def poll(self) -> list[Completion]:
        return self._completions.take()

    def fileno(self) -> int:
        return self._completions.fileno()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._initiator.close()
        self._target.close()
        for export in list(self._exports):
            self._end_export(export)
        for region in self._regions.values():
            region.close()
        for device in self._devices:
            device.close()
        self._completions.close()

    def _pin(
        self, gpu: Gpu | None, parts: Sequence[Range], *, is_remote: bool = False, writable: bool = False
    ) -> Pinned | None:
        """Memory, by its address, pinned for each device. None where it is memory of a GPU that they do not reach."""
        if gpu is not None:
            return self._gpu_direct.pin(gpu, parts, is_remote=is_remote, writable=writable)
        return pin_all(
            self._devices,
            parts,
            lambda device, part: device.register(part.offset, part.length, is_remote=is_remote, writable=writable),
        )

    def _end_export(self, number: int) -> None:
        with self._lock:
            pinned = self._exports.pop(number, None)
            for region in self._regions.values():
                region.exports.discard(number)
        if pinned is None:
            return
        for each in pinned:
            each.close()
        self._target.tell_withdrawn(number)

    def _index_regions(self) -> None:
        chunks = [chunk for region in self._regions.values() for chunk in region.chunks]
        ordered = sorted(chunks, key=lambda chunk: chunk.address)
        self._by_address = [chunk.address for chunk in ordered], ordered

    def _messages(self, work: Work) -> list[Message[Registered]]:
        operation, path = work.operation, work.path
        pieces = [segment for piece in operation.pieces for segment in self._segments(piece)]
        if has_device_views() and device_among([each.view for each in pieces if each.region is None]) is not None:
            raise PathFailed(
                "memory of a GPU among the pieces was unregistered meanwhile", path=self.name, errno=errno.EFAULT
            )
        there = targets(operation.ranges, path.hull_starts, path.hull_ends)
        return messages(pieces, there, self._limits, in_order=operation.in_order)

    def _location_of(self, address: int, gpu: Gpu | None) -> str:
        return location_of(address) if gpu is None else location_of_gpu(gpu.pci_address, self._inventory)

    def _near(self, location: str) -> Nearness:
        """Of memory that lies there."""
        priority = self._matrix.get(location)
        if priority is None:
            return Nearness()
        return Nearness(self._places(priority.preferred), self._places([*priority.preferred, *priority.secondary]))

    def _places(self, names: Sequence[str]) -> frozenset[int]:
        return frozenset(place for place, device in enumerate(self._devices) if device.port.device in names)

    def _near_operation(self, operation: Operation) -> Nearness:
        if len(self._devices) == 1:
            return Nearness()
        first = next(self._segments(operation.pieces[0]), None)
        return first.region.near if first is not None and isinstance(first.region, _Chunk) else Nearness()

    def _segments(self, piece: memoryview) -> Iterator[Segment[Registered]]:
        """A piece, cut where one chunk goes over into the next."""
        address = address_of(piece)
        starts, chunks = self._by_address
        while piece.nbytes:
            index = bisect_right(starts, address) - 1
            if index < 0 or chunks[index].end <= address:
                yield Segment(piece, address, None)
                return
            length = min(piece.nbytes, chunks[index].end - address)
            yield Segment(piece[:length], address, chunks[index])
            piece, address = piece[length:], address + length


def _refusal(operation: Operation, path: RdmaPath) -> TransferError | TimeoutError | None:
    if operation.deadline_s <= time.monotonic():
        return DeadlineExceeded("posted after its deadline")
    if operation.kind is Kind.WRITE and not path.writable:
        return OutOfRange("the segment is exported for reading only")
    part = first_outside(operation.ranges, path.starts, path.ends)
    if part is not None:
        return OutOfRange(f"bytes {part.offset} to {part.offset + part.length} are not exported")
    return None


# Made here, once: two threads that make the first one of a type at the same time can end the process.
_decoder: Final = msgspec.msgpack.Decoder(RdmaPath)


@lru_cache(maxsize=1024)
def _decode(path: bytes) -> RdmaPath:
    return _decoder.decode(path)
