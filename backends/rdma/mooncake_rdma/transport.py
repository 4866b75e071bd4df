"""Transport `rdma`, as the Transfer Engine sees it."""

from __future__ import annotations

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

from mooncake_core.errors import DeadlineExceeded, OutOfRange, TransferError
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
from mooncake_core.transfer.exports import check_ranges, first_outside, merged
from mooncake_core.transfer.topology import location_of, matrix, read_inventory
from mooncake_rdma.connection import Nearness, Registered, Work
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

    __slots__ = ("address", "end", "near", "pinned")

    def __init__(self, address: int, num_bytes: int, pinned: Sequence[MemoryRegion], near: Nearness) -> None:
        self.address = address
        self.end = address + num_bytes
        self.pinned = pinned
        self.near = near

    def local_key(self, place: int) -> int:
        return self.pinned[place].local_key


class _Region:
    """Registered memory: in one chunk, where devices take memory regions of its size."""

    __slots__ = ("address", "chunks", "exports", "num_bytes")

    def __init__(self, address: int, num_bytes: int, chunks: Sequence[_Chunk]) -> None:
        self.address = address
        self.num_bytes = num_bytes
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
    capabilities: ClassVar[Capabilities] = Capabilities(is_rdma=True, in_order=True)

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
        self._matrix = matrix(read_inventory(), settings.topology)
        with ExitStack() as made:
            self._devices = self.open_devices()
            for device in self._devices:
                made.callback(device.close)
            self._ports = [address_of_port(device.port) for device in self._devices]
            self._most_region_bytes = min(device.most_region_bytes for device in self._devices)
            self._limits = Limits(min(device.most_segments for device in self._devices))
            self._target = Target(settings, self._devices)
            made.pop_all()
        self._completions = Completions(settings.deliver)
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
        parts = divided([Range(address, memory.nbytes)], self._most_region_bytes)
        pinned = zip(*self._pin(parts), strict=True)
        chunks = [
            _Chunk(part.offset, part.length, of_part, self._near(part.offset))
            for part, of_part in zip(parts, pinned, strict=True)
        ]
        region = _Region(address, memory.nbytes, chunks)
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

    def export(self, handle: int, *, writable: bool, ranges: Sequence[Range] | None = None) -> bytes:
        region = self._regions[handle]
        check_ranges(ranges, region.num_bytes)
        allowed = merged(ranges or [Range(0, region.num_bytes)])
        covering = divided(hulls([part for part in allowed if part.length]), self._most_region_bytes)
        pinned = self._pin(
            [Range(region.address + part.offset, part.length) for part in covering], is_remote=True, writable=writable
        )
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
                address=region.address,
                writable=writable,
                starts=[part.offset for part in allowed],
                ends=[part.offset + part.length for part in allowed],
                hull_starts=[part.offset for part in covering],
                hull_ends=[part.offset + part.length for part in covering],
                ports=self._ports,
                keys=[[each.remote_key for each in of_device] for of_device in pinned],
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
        self, parts: Sequence[Range], *, is_remote: bool = False, writable: bool = False
    ) -> list[list[MemoryRegion]]:
        """Memory, by its address, pinned for each device; what is made so far is given back where one refuses."""
        with ExitStack() as made:
            pinned: list[list[MemoryRegion]] = []
            for device in self._devices:
                pinned.append([])
                for part in parts:
                    region = device.register(part.offset, part.length, is_remote=is_remote, writable=writable)
                    made.callback(region.close)
                    pinned[-1].append(region)
            made.pop_all()
        return pinned

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
        there = targets(operation.ranges, path.hull_starts, path.hull_ends)
        return messages(pieces, there, self._limits, in_order=operation.in_order)

    def _near(self, address: int) -> Nearness:
        """Of memory that lies there."""
        priority = self._matrix.get(location_of(address))
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
