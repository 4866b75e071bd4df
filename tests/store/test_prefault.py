"""A segment's memory is taken from the machine beside the work: what is written meanwhile stays, and the last memory is left."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mooncake_core.store.prefault import CHUNK_BYTES, KEEP_FREE_BYTES, Prefault
from mooncake_core.transfer.shared_memory import SharedMemory

NUM_BYTES = 3 * CHUNK_BYTES + 8192
PLENTY = 1 << 40


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory("prefault", NUM_BYTES)
    yield made
    made.close()


def taken_bytes(memory: SharedMemory) -> int:
    return os.fstat(memory.descriptor).st_blocks * 512


def test_all_of_it_is_taken_and_what_is_written_meanwhile_stays(memory: SharedMemory) -> None:
    prefault = Prefault("n", memory.view, available_bytes=lambda: PLENTY)
    places = range(0, NUM_BYTES, 1 << 20)
    for place in places:
        memory.view[place] = 7
    assert prefault.wait(30)
    prefault.stop()
    assert taken_bytes(memory) == NUM_BYTES
    assert all(memory.view[place] == 7 for place in places)
    assert memory.view[1] == 0


def test_the_last_memory_of_the_machine_is_left_and_that_is_said(
    memory: SharedMemory, caplog: pytest.LogCaptureFixture
) -> None:
    left = iter([KEEP_FREE_BYTES + CHUNK_BYTES, KEEP_FREE_BYTES + CHUNK_BYTES - 1])
    prefault = Prefault("n", memory.view, available_bytes=lambda: next(left))
    assert prefault.wait(30)
    prefault.stop()
    assert taken_bytes(memory) == CHUNK_BYTES
    assert "n took 16MiB of its" in caplog.text


def test_it_stops_in_the_middle_when_it_is_told_to(memory: SharedMemory) -> None:
    prefault: list[Prefault] = []

    def available_bytes() -> int:
        while not prefault:
            pass
        prefault[0]._stopping.set()
        return PLENTY

    prefault.append(Prefault("n", memory.view, available_bytes=available_bytes))
    prefault[0].stop()
    prefault[0].stop()
    assert taken_bytes(memory) == CHUNK_BYTES
    memory.close()
    with pytest.raises(ValueError, match="released"):
        memory.view[0]
