"""What the test over real verbs moves is what it says, and a wrong byte does not pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages.memory import SegmentDescriptor
from tests.transfer.random_transfers import COUNT, LARGEST_BYTES, MOST_BYTES, SEED, RandomTransfers, draw_sizes

SEGMENT_BYTES = 1 << 20


def test_sizes_are_log_uniform_and_reach_the_largest_within_the_bytes_that_may_be() -> None:
    sizes = draw_sizes(COUNT, LARGEST_BYTES, MOST_BYTES, seed=SEED)
    assert len(sizes) == COUNT
    assert sum(sizes) <= MOST_BYTES
    assert LARGEST_BYTES / 2 < max(sizes) <= LARGEST_BYTES
    by_magnitude = Counter(size.bit_length() for size in sizes)
    assert by_magnitude.keys() == set(range(1, LARGEST_BYTES.bit_length()))
    assert max(by_magnitude.values()) < 2 * min(by_magnitude.values())


def test_no_more_bytes_are_drawn_than_may_be() -> None:
    assert sum(draw_sizes(COUNT, LARGEST_BYTES, 10_000, seed=SEED)) <= 10_000


@pytest.fixture
def segment() -> Iterator[tuple[TransferEngine, SegmentDescriptor, bytearray]]:
    here, there = (
        TransferEngine(owner=name, host_id=name, incarnation=number, transports=["tcp"])
        for number, name in enumerate(("here", "there"), 1)
    )
    memory = bytearray(SEGMENT_BYTES)
    yield here, there.export(there.register_memory(memory), writable=True), memory
    here.close()
    there.close()


def test_all_are_moved(segment: tuple[TransferEngine, SegmentDescriptor, bytearray]) -> None:
    engine, descriptor, _ = segment
    transfers = RandomTransfers(engine, descriptor, largest_bytes=SEGMENT_BYTES, most_bytes=1 << 30)
    transfers.run(100)
    assert transfers.done == 100
    assert transfers.moved_bytes == sum(draw_sizes(100, SEGMENT_BYTES, 1 << 30, seed=SEED))
    transfers.close()


def test_a_wrong_byte_is_found(segment: tuple[TransferEngine, SegmentDescriptor, bytearray]) -> None:
    engine, descriptor, memory = segment
    transfers = RandomTransfers(engine, descriptor, largest_bytes=1000, most_bytes=1 << 30)
    transfers.run(10)
    memory[SEGMENT_BYTES // 2] ^= 1
    with pytest.raises(AssertionError):
        transfers._compare()
    transfers.close()
