"""Memory that callers name by its address."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from collections.abc import Sequence

from mooncake._codes import Code
from mooncake_core.errors import MemoryOverlaps
from mooncake_core.transfer.addresses import AddressMap, Span, address_of, usable, view_of

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
_new_bytes.restype = ctypes.py_object
_BYTES_HEADER = bytes.__basicsize__ - 1
"""What stands before the content of a bytes object."""


def new_bytes(num_bytes: int) -> tuple[bytes, memoryview]:
    """A bytes object of that size, and a view to fill it by before anybody else sees it: saves the copy into one."""
    made: bytes = _new_bytes(None, num_bytes)
    return made, view_of(id(made) + _BYTES_HEADER, num_bytes)


class Registered:
    """Memory whose addresses need no second look: `register_buffer` and what this module allocates. Any thread."""

    def __init__(self) -> None:
        self._views: AddressMap[memoryview] = AddressMap()

    def add(self, address: int, num_bytes: int) -> int:
        """Code.OK, or why it cannot be registered: INVALID_PARAMS for what cannot be memory or overlaps other memory,
        NOT_SUPPORTED for memory that the CPU cannot read."""
        if address <= 0 or num_bytes <= 0:
            return Code.INVALID_PARAMS
        view = usable(address, num_bytes)
        if view is None:
            return Code.NOT_SUPPORTED
        try:
            self._views.add(Span(address, num_bytes), view)
        except MemoryOverlaps:
            return Code.INVALID_PARAMS
        return Code.OK

    def remove(self, address: int) -> int:
        """Code.OK, or INVALID_PARAMS where no registered memory begins."""
        return Code.INVALID_PARAMS if self._views.remove(address) is None else Code.OK

    def view(self, address: int, num_bytes: int) -> memoryview | None:
        """Memory at an address; None where it goes beyond what was registered, or is no memory of the host. What is not
        registered at all is looked at, which takes longer."""
        rest = self.rest(address)
        if rest is None:
            return usable(address, num_bytes)
        return rest[:num_bytes] if 0 <= num_bytes <= rest.nbytes else None

    def rest(self, address: int) -> memoryview | None:
        """Registered memory from an address to its end; None where none is registered."""
        found = self._views.find(address)
        return None if found is None else found[2][address - found[0] :]

    def views(self, addresses: Sequence[int], sizes: Sequence[int]) -> list[memoryview] | None:
        """As `view` for several; None where one is no memory, or the lists differ in length."""
        if len(addresses) != len(sizes):
            return None
        found = [self.view(address, size) for address, size in zip(addresses, sizes, strict=True)]
        good = [view for view in found if view is not None]
        return good if len(good) == len(found) else None


class BufferHandle(bytearray):
    """An object's bytes in memory of their own: anything that takes a buffer takes it."""

    def ptr(self) -> int:
        """Its address."""
        return address_of(memoryview(self))

    def size(self) -> int:
        """In bytes."""
        return len(self)


class HostMemory:
    """Page-aligned memory by address."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def alloc(self, num_bytes: int) -> int:
        """An address; 0 where there is no such memory."""
        try:
            memory = mmap.mmap(-1, num_bytes)
        except (OSError, ValueError, OverflowError):
            return 0
        address = address_of(memoryview(memory))
        self._maps[address] = memory
        return address

    def free(self, address: int) -> int:
        """0, or INVALID_PARAMS where nothing was allocated."""
        return Code.OK if self._maps.pop(address, None) is not None else Code.INVALID_PARAMS


def take(pieces: Sequence[memoryview], num_bytes: int) -> Sequence[memoryview]:
    """The first bytes of pieces that have at least so many."""
    if sum(piece.nbytes for piece in pieces) == num_bytes:
        return pieces
    ends = itertools.accumulate(piece.nbytes for piece in pieces)
    cut = [piece[: max(0, num_bytes - end + piece.nbytes)] for piece, end in zip(pieces, ends, strict=True)]
    return [piece for piece in cut if piece.nbytes]
