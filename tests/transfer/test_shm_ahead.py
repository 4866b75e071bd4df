"""A peer's memory is set up beside the work, as far as the peer has taken it, and no page is made here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mooncake_core.testing.cluster import wait_for
from mooncake_core.transfer.addresses import address_of
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_shm import ahead
from mooncake_shm.ahead import CHUNK_BYTES, Ahead

NUM_BYTES = 4 * CHUNK_BYTES
PAGE_BYTES = 4096


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory("ahead", NUM_BYTES)
    yield made
    made.close()


@pytest.fixture
def worker() -> Iterator[Ahead]:
    made = Ahead()
    yield made
    made.close()


def mapped_bytes(memory: SharedMemory) -> int:
    """Of the mapping here, by the kernel's account."""
    start = f"{address_of(memory.view):x}-"
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.startswith(start))
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))


def taken_bytes(memory: SharedMemory) -> int:
    return os.fstat(memory.descriptor).st_blocks * 512


def test_what_the_peer_has_taken_is_mapped_and_nothing_more(
    memory: SharedMemory, worker: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "GROWING_PATIENCE_S", 0.2)
    os.pwrite(memory.descriptor, b"x" * CHUNK_BYTES, 0)
    os.pwrite(memory.descriptor, b"y", 3 * CHUNK_BYTES)
    assert mapped_bytes(memory) == 0
    worker.begin(memory.view, memory.descriptor, write=True, is_used=lambda: True)
    wait_for(lambda: mapped_bytes(memory) == CHUNK_BYTES)
    worker.close()
    assert taken_bytes(memory) == CHUNK_BYTES + PAGE_BYTES
    assert mapped_bytes(memory) == CHUNK_BYTES
    assert memory.view[:CHUNK_BYTES:PAGE_BYTES] == b"x" * (CHUNK_BYTES // PAGE_BYTES)


def test_it_follows_a_peer_that_is_still_taking_its_memory(memory: SharedMemory, worker: Ahead) -> None:
    worker.begin(memory.view, memory.descriptor, write=True, is_used=lambda: True)
    for start in range(0, NUM_BYTES, CHUNK_BYTES):
        os.pwrite(memory.descriptor, b"x" * CHUNK_BYTES, start)
        wait_for(lambda end=start + CHUNK_BYTES: mapped_bytes(memory) == end)  # type: ignore[misc]


def test_what_is_used_no_more_is_left_alone_and_close_ends_it(memory: SharedMemory, worker: Ahead) -> None:
    os.pwrite(memory.descriptor, b"x" * NUM_BYTES, 0)
    files = len(os.listdir("/proc/self/fd"))
    worker.begin(memory.view, memory.descriptor, write=True, is_used=lambda: False)
    wait_for(lambda: len(os.listdir("/proc/self/fd")) == files)
    assert mapped_bytes(memory) == 0
    worker.begin(memory.view, memory.descriptor, write=True, is_used=lambda: True)
    worker.close()
    worker.close()
    assert len(os.listdir("/proc/self/fd")) == files
