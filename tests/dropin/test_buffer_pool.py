"""Registered memory that is lent out and taken back."""

from __future__ import annotations

import threading

import pytest

from mooncake.store import MooncakeDistributedStore, RegisteredBufferPool

KIB = 1 << 10


def registered(store: MooncakeDistributedStore, address: int) -> bool:
    return store._registered.rest(address) is not None


def test_a_buffer_is_registered_while_the_pool_lives_and_is_lent_again() -> None:
    store = MooncakeDistributedStore()
    pool = RegisteredBufferPool(store)
    with pool.acquire(1000) as lease:
        address = lease.ptr
        assert (lease.size, lease.buffer.nbytes) == (1000, 1000)
        lease.buffer[:4] = b"abcd"
        assert registered(store, address)
    with pool.buffer(2000) as lease:
        assert lease.ptr == address
    pool.close()
    assert not registered(store, address)


def test_a_pool_that_is_used_up_says_so() -> None:
    pool = RegisteredBufferPool(MooncakeDistributedStore(), max_bytes=128 * KIB)
    first, second = pool.acquire(64 * KIB), pool.acquire(64 * KIB)
    with pytest.raises(TimeoutError, match="no buffer of 65536 bytes is free"):
        pool.acquire(1, block=False)
    with pytest.raises(TimeoutError):
        pool.acquire(1, timeout=0.01)
    with pytest.raises(ValueError, match="does not fit"):
        pool.acquire(129 * KIB)
    first.release()
    second.release()
    pool.acquire(128 * KIB).release()  # in place of both
    pool.close()


def test_who_waits_gets_what_comes_back() -> None:
    pool = RegisteredBufferPool(MooncakeDistributedStore(), max_bytes=64 * KIB)
    lease, got = pool.acquire(10), []
    waiter = threading.Thread(target=lambda: got.append(pool.acquire(10, timeout=10)))
    waiter.start()
    lease.release()
    lease.release()
    waiter.join(10)
    assert len(got) == 1
    pool.close()
    got[0].release()
    with pytest.raises(RuntimeError, match="closed"):
        pool.acquire(10)
