"""Memory by its address: views of it, and whether this process may touch it."""

from __future__ import annotations

import ctypes
import os
import threading
from bisect import bisect_right, insort
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from mooncake_core.errors import MemoryOverlaps

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.write.restype = ctypes.c_ssize_t


class Span(NamedTuple):
    """Bytes [address, address + length) of a process."""

    address: int
    length: int


_Byte = ctypes.c_char


class _PyBuffer(ctypes.Structure):
    """CPython's Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(view: bytes | memoryview) -> int:
    """Where a contiguous view begins; right while the view lives."""
    if view and isinstance(view, memoryview) and not view.readonly:  # a quarter of the time
        return ctypes.addressof(_Byte.from_buffer(view))
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    address = buffer.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def view_of(address: int, num_bytes: int) -> memoryview:
    """Memory at an address, without a copy; right as long as its owner keeps it."""
    return memoryview((ctypes.c_char * num_bytes).from_address(address)).cast("B")


def is_readable(address: int, num_bytes: int) -> bool:
    """Whether this process may read the first and the last byte: memory of a GPU it may not. The kernel is asked, since
    looking would end the process."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return all(_libc.write(writer, end, 1) == 1 for end in {address, address + num_bytes - 1})
    finally:
        os.close(reader)
        os.close(writer)


def usable(address: int, num_bytes: int) -> memoryview | None:
    """A view of memory; None where there is none that the CPU can read."""
    if address <= 0 or num_bytes < 0 or address + num_bytes > 1 << 64:
        return None
    if num_bytes == 0:
        return memoryview(b"")
    return view_of(address, num_bytes) if is_readable(address, num_bytes) else None


class AddressMap(Generic[T]):
    """What is known of ranges of addresses that do not overlap. Any thread; those that look never wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table: tuple[list[int], dict[int, tuple[int, T]]] = ([], {})
        """Starts in order, and length and value by start; never changed, only replaced."""

    def add(self, span: Span, value: T) -> None:
        """Enters a range.

        Raises:
            MemoryOverlaps: a part of it is there already; names that range.
        """
        start, length = span
        with self._lock:
            starts, entries = self._table
            index = bisect_right(starts, start + length - 1) - 1
            if index >= 0 and (other := starts[index]) + entries[other][0] > start:
                raise MemoryOverlaps(
                    f"{length} bytes at {start:#x} overlap the {entries[other][0]} bytes at {other:#x}: "
                    "unregister those first"
                )
            starts = [*starts]
            insort(starts, start)
            self._table = starts, {**entries, start: (length, value)}

    def remove(self, start: int) -> T | None:
        """What was known of the range that begins there, which is forgotten; None where none does."""
        with self._lock:
            starts, entries = self._table
            if start not in entries:
                return None
            self._table = (
                [other for other in starts if other != start],
                {other: entry for other, entry in entries.items() if other != start},
            )
        return entries[start][1]

    def find(self, address: int) -> tuple[int, int, T] | None:
        """Start, length and value of the range that the address lies in."""
        starts, entries = self._table
        index = bisect_right(starts, address) - 1
        if index < 0:
            return None
        start = starts[index]
        length, value = entries[start]
        return (start, length, value) if address < start + length else None

    def __iter__(self) -> Iterator[tuple[Span, T]]:
        """All of them as they were at the beginning, in the order they were entered."""
        for start, (length, value) in self._table[1].items():
            yield Span(start, length), value
