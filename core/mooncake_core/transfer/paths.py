"""The transports of one engine, the preferred first: what they know of memory, and which of them reach a segment."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from mmap import mmap
from typing import Final

from mooncake_core import registry
from mooncake_core.errors import OutOfRange, PluginUnavailable
from mooncake_core.transfer.contract import Range, Transport, TransportSettings
from mooncake_core.transfer.device_memory import device_of
from mooncake_core.transfer.local import LocalTransport
from mooncake_core.wire.messages.memory import SegmentDescriptor

LOCAL: Final = LocalTransport.name
Buffer = memoryview | bytearray | mmap

_log = logging.getLogger(__name__)


class Region:
    """Memory that was registered with every transport of an engine; that of a device with those that take such."""

    __slots__ = ("handles", "memory")

    def __init__(self, memory: memoryview, handles: dict[str, int]) -> None:
        self.memory = memory
        self.handles = handles


class Paths:
    """Used by any thread."""

    def __init__(
        self, settings: TransportSettings, transports: Sequence[str | type[Transport]], optional: Collection[str]
    ) -> None:
        """Of `optional` ones this machine may lack what they need. Raises PluginUnknown and PluginUnavailable of the others."""
        self._settings = settings
        self._transports: dict[str, Transport] = {}
        with contextlib.ExitStack() as made:
            for choice in (LocalTransport, *transports):
                try:
                    kind: type[Transport] = registry.load("transport", choice) if isinstance(choice, str) else choice
                    transport = kind(settings)
                except PluginUnavailable as reason:
                    if (choice if isinstance(choice, str) else choice.name) not in optional:
                        raise
                    _log.warning("%s does without: %s", settings.owner, reason)
                    continue
                made.callback(transport.close)
                self._transports[kind.name] = transport
            made.pop_all()

    def __iter__(self) -> Iterator[Transport]:
        return iter(self._transports.values())

    def __getitem__(self, name: str) -> Transport:
        return self._transports[name]

    def register(self, memory: Buffer, descriptor: int | None = None) -> Region:
        """Makes local memory known to all transports. It must be writable and stay alive until unregistered.

        Peers of the same host map it where it has a descriptor (shared_memory.SharedMemory). Memory of a device is a view
        that `device_memory` made; transports that know nothing of such do not see it.
        """
        view = memoryview(memory).cast("B")
        if view.readonly:
            raise OutOfRange("cannot register memory that is read-only")
        on_device = device_of(view) is not None
        region = Region(view, {})
        try:
            for name, transport in self._transports.items():
                if transport.capabilities.device_memory or not on_device:
                    region.handles[name] = transport.register(view, descriptor)
        except BaseException:  # NICs would take for this memory what comes to lie at its addresses
            self.unregister(region)
            raise
        return region

    def unregister(self, region: Region) -> None:
        """Forgets a region; its exports are withdrawn."""
        for name, handle in region.handles.items():
            self._transports[name].unregister(handle)

    def export(self, region: Region, *, writable: bool, ranges: Sequence[Range] | None = None) -> SegmentDescriptor:
        """Lets peers read, and write where writable, a region or only some ranges of it."""
        paths = {
            name: path
            for name, handle in region.handles.items()
            if (path := self._transports[name].export(handle, writable=writable, ranges=ranges)) is not None
        }
        device = device_of(region.memory)
        if device is not None and paths.keys() <= {LOCAL}:
            ours = ", ".join(name for name in self._transports if name != LOCAL)
            _log.warning(
                "no peer reaches memory of %s: %s cannot carry it, tcp can", device.name, ours or "no transport"
            )
        return SegmentDescriptor(
            owner=self._settings.owner,
            host_id=self._settings.host_id,
            incarnation=self._settings.incarnation,
            length_bytes=region.memory.nbytes,
            paths=paths,
        )

    def withdraw(self, descriptor: SegmentDescriptor) -> None:
        """Ends an export. When it returns, no peer touches the memory through this descriptor any more."""
        for name, path in descriptor.paths.items():
            if name in self._transports:
                self._transports[name].withdraw(path)

    def reaching(self, segment: SegmentDescriptor, in_order: bool = False) -> Iterator[Transport]:
        """Transports that reach the segment, the preferred first."""
        same_process = segment.incarnation == self._settings.incarnation
        same_host = segment.host_id == self._settings.host_id
        for name, transport in self._transports.items():
            can = transport.capabilities
            if (
                name in segment.paths
                and (same_process or not can.same_process_only)
                and (same_host or not can.same_host_only)
                and (can.in_order or not in_order)
            ):
                yield transport

    def none_reaches(self, segment: SegmentDescriptor) -> str:
        """What to say then."""
        ours = ", ".join(name for name in self._transports if name != LOCAL)
        theirs = ", ".join(name for name in segment.paths if name != LOCAL)
        return f"no path to {segment.owner}: it offers {theirs or 'none'}, {self._settings.owner} has {ours or 'none'}"

    def close(self) -> None:
        """Ends all of them."""
        for transport in self._transports.values():
            transport.close()
