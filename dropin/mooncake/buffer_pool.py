"""Registered memory that is lent out and taken back, so that a program need not register anew for every call."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from mooncake._codes import Code
from mooncake._memory import HostMemory
from mooncake_core.transfer.addresses import view_of

if TYPE_CHECKING:
    from mooncake._pointers import PointerCalls

SMALLEST_BYTES: Final = 64 << 10


class RegisteredBufferLease:
    """A buffer that is lent; given back by `release`, or at the end of a `with`."""

    def __init__(self, pool: RegisteredBufferPool, ptr: int, size: int, class_bytes: int) -> None:
        self._pool = pool
        self._class_bytes = class_bytes
        self._released = False
        self.ptr = ptr
        self.size = size
        self.buffer = view_of(ptr, size)
        """Its bytes; not to be used after `release`."""

    def __enter__(self) -> RegisteredBufferLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Gives it back. Idempotent."""
        if not self._released:
            self._released = True
            self.buffer.release()
            self._pool._take_back(self.ptr, self._class_bytes)


class RegisteredBufferPool:
    """Buffers of a store, in classes of a power of two bytes. Any thread."""

    def __init__(
        self,
        store: PointerCalls,
        max_bytes: int = 0,
        min_size_class: int = SMALLEST_BYTES,
        max_size_class: int | None = None,
        alignment: int = 0,
        block_on_exhaustion: bool = True,
        default_timeout: float | None = None,
        max_regions: int | None = None,
        prewarm_size: int | None = None,
        prewarm_count: int = 0,
    ) -> None:
        """At most `max_bytes` in all, 0 for any number. `alignment` and `max_regions` are accepted: each buffer is a region of
        whole pages."""
        self._store = store
        self._max_bytes = max_bytes
        self._smallest = min_size_class
        self._largest = max_size_class
        self._blocks = block_on_exhaustion
        self._timeout_s = default_timeout
        self._memory = HostMemory()
        self._changed = threading.Condition()
        self._free: dict[int, list[int]] = {}
        self._all: dict[int, int] = {}
        """Address → bytes."""
        self._closed = False
        if prewarm_size:
            self.prewarm(prewarm_size, prewarm_count)

    def acquire(self, size: int, block: bool | None = None, timeout: float | None = None) -> RegisteredBufferLease:
        """A buffer of at least that size.

        Raises:
            ValueError: it is larger than the pool may lend.
            TimeoutError: none came free in time, or at once where `block` is false.
            RuntimeError: the pool is closed, or the machine has no memory left.
        """
        class_bytes = self._class_of(size)
        patience_s = self._timeout_s if timeout is None else timeout
        waits = self._blocks if block is None else block
        deadline = None if patience_s is None else time.monotonic() + patience_s
        with self._changed:
            while (address := self._find(class_bytes)) is None:
                left_s = None if deadline is None else deadline - time.monotonic()
                if not waits or (left_s is not None and left_s <= 0):
                    raise TimeoutError(f"no buffer of {class_bytes} bytes is free, and there may be no more of them")
                self._changed.wait(left_s)
        return RegisteredBufferLease(self, address, size, class_bytes)

    buffer = acquire

    def prewarm(self, size: int, count: int) -> None:
        """Registers buffers before they are needed."""
        leases = [self.acquire(size) for _ in range(count)]
        for lease in leases:
            lease.release()

    def close(self) -> None:
        """Unregisters and frees the buffers that are not lent; those that are follow when they come back. Idempotent."""
        with self._changed:
            self._closed = True
            for addresses in self._free.values():
                for address in addresses:
                    self._give_up(address)
            self._free.clear()
            self._changed.notify_all()

    def _class_of(self, size: int) -> int:
        if size <= 0 or (self._largest is not None and size > self._largest):
            raise ValueError(f"expected 1 to {self._largest or 'any number of'} bytes, got {size}")
        class_bytes = max(self._smallest, 1 << (size - 1).bit_length())
        if self._max_bytes and class_bytes > self._max_bytes:
            raise ValueError(f"a buffer of {class_bytes} bytes does not fit the pool's {self._max_bytes}")
        return class_bytes

    def _find(self, class_bytes: int) -> int | None:
        """The address of a free buffer, a new one if the pool may grow; else None."""
        if self._closed:
            raise RuntimeError("the buffer pool is closed")
        if free := self._free.get(class_bytes):
            return free.pop()
        while self._max_bytes and sum(self._all.values()) + class_bytes > self._max_bytes:
            other = next((addresses for addresses in self._free.values() if addresses), None)
            if other is None:
                return None
            self._give_up(other.pop())
        address = self._memory.alloc(class_bytes)
        if not address or self._store.register_buffer(address, class_bytes) != Code.OK:
            raise RuntimeError(f"no memory for a buffer of {class_bytes} bytes")
        self._all[address] = class_bytes
        return address

    def _take_back(self, address: int, class_bytes: int) -> None:
        with self._changed:
            if self._closed:
                self._give_up(address)
            else:
                self._free.setdefault(class_bytes, []).append(address)
            self._changed.notify()

    def _give_up(self, address: int) -> None:
        del self._all[address]
        self._store.unregister_buffer(address)
        self._memory.free(address)


BufferPool = RegisteredBufferPool
BufferLease = RegisteredBufferLease
