"""Memory by address: what may be used, and what must not be touched."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from mooncake._codes import Code
from mooncake._memory import BufferHandle, HostMemory, Registered, new_bytes, take
from mooncake.store import MooncakeDistributedStore
from mooncake_core.transfer.addresses import address_of, view_of


def test_views_stay_within_what_was_registered() -> None:
    memory = bytearray(range(100))
    registered, start = Registered(), address_of(memoryview(memory))
    assert registered.add(start, 50) == Code.OK
    assert bytes(registered.view(start + 10, 5) or b"") == bytes(range(10, 15))
    assert registered.view(start, 51) is None
    assert registered.view(start + 49, 2) is None
    assert registered.views([start, start + 40], [1, 2]) is not None
    assert registered.views([start, start + 49], [1, 2]) is None
    assert registered.views([start], [1, 2]) is None
    assert bytes(registered.rest(start + 45) or b"") == bytes(range(45, 50))
    assert registered.rest(start + 50) is None


def test_unregistered_memory_of_the_host_is_taken_and_nothing_else() -> None:
    memory = bytearray(range(100))
    registered = Registered()
    assert bytes(registered.view(address_of(memoryview(memory)), 100) or b"") == bytes(range(100))
    assert registered.view(0, 1) is None
    assert registered.view(4096, 1) is None
    assert registered.view(address_of(memoryview(memory)), -1) is None


def test_a_view_is_the_memory_itself() -> None:
    memory = bytearray(10)
    view_of(address_of(memoryview(memory)), 10)[3:5] = b"ab"
    assert memory[3:5] == b"ab"


def test_overlapping_memory_is_refused() -> None:
    memory = bytearray(100)
    registered, start = Registered(), address_of(memoryview(memory))
    assert registered.add(start + 20, 20) == Code.OK
    assert registered.add(start, 21) == Code.INVALID_PARAMS
    assert registered.add(start + 39, 5) == Code.INVALID_PARAMS
    assert registered.add(start, 20) == Code.OK
    assert registered.add(start + 40, 60) == Code.OK


def test_memory_that_the_cpu_cannot_read_is_refused_and_said_why(caplog: pytest.LogCaptureFixture) -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    start = address_of(memoryview(memory))
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert protect(start, mmap.PAGESIZE, 0) == 0  # as the addresses of a GPU are
    store = MooncakeDistributedStore()
    assert store.register_buffer(start, mmap.PAGESIZE) == Code.NOT_SUPPORTED
    assert "memory of a GPU cannot be registered here" in caplog.text
    assert protect(start, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert store.register_buffer(start, mmap.PAGESIZE) == Code.OK
    assert store.unregister_buffer(start) == Code.OK


def test_new_bytes_are_filled_in_place() -> None:
    made, view = new_bytes(1000)
    view[:] = bytes(range(250)) * 4
    assert made == bytes(range(250)) * 4
    assert new_bytes(0)[0] == b""


def test_take_cuts_the_last_piece() -> None:
    pieces = [memoryview(b"abc"), memoryview(b"def"), memoryview(b"ghi")]
    assert [bytes(piece) for piece in take(pieces, 5)] == [b"abc", b"de"]
    assert [bytes(piece) for piece in take(pieces, 9)] == [b"abc", b"def", b"ghi"]
    assert take(pieces, 0) == []


def test_handles_are_buffers_with_an_address() -> None:
    handle = BufferHandle(b"some bytes")
    assert handle.size() == len(handle) == 10
    assert ctypes.string_at(handle.ptr(), 10) == b"some bytes"


def test_host_memory() -> None:
    memory = HostMemory()
    address = memory.alloc(10_000)
    assert address % mmap.PAGESIZE == 0
    view_of(address, 10_000)[9_999] = 1
    assert memory.free(address) == Code.OK
    assert memory.free(address) == Code.INVALID_PARAMS
    assert memory.alloc(0) == 0
