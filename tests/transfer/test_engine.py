"""The Transfer Engine over transports that work, misbehave, or are missing."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooncake_core.errors import OutOfRange, PathFailed, PluginUnavailable, StaleSegment, TransferError
from mooncake_core.testing.memory_transport import Hub
from mooncake_core.transfer.contract import Kind, Range, Transport, TransportSettings
from mooncake_core.transfer.engine import State, TransferEngine, TransferRequest, first_error
from mooncake_core.transfer.slices import cut, pair, slice_bytes
from mooncake_tcp import TcpTransport


def engine(
    owner: str, incarnation: int, transports: list[str | type[Transport]] | None = None, host_id: str = "h"
) -> TransferEngine:
    return TransferEngine(owner=owner, host_id=host_id, incarnation=incarnation, transports=transports or ["tcp"])


async def test_reads_and_writes_between_two_engines() -> None:
    here, there = engine("here", 1), engine("there", 2)
    memory = bytearray(os.urandom(20 << 20))
    segment = there.export(there.register_memory(memory), writable=True)
    sinks = [bytearray(9 << 20), bytearray(100)]
    results = await here.read(segment, [([memoryview(sinks[0])], 1000), ([memoryview(sinks[1])], 5)])
    assert results == [None, None]
    assert sinks[0] == memory[1000 : 1000 + (9 << 20)]
    assert sinks[1] == memory[5:105]
    assert await here.write(segment, [([memoryview(b"abc"), memoryview(b"def")], 0)]) == [None]
    assert memory[:6] == b"abcdef"
    here.close()
    there.close()


async def test_the_same_process_copies_and_says_so() -> None:
    one = engine("one", 1)
    memory = bytearray(b"hello")
    segment = one.export(one.register_memory(memory), writable=False)
    sink = bytearray(5)
    batch = one.allocate_batch(1)
    one.submit(batch, [TransferRequest(Kind.READ, (memoryview(sink),), segment, (Range(0, len(sink)),))])
    assert one.wait(batch, 10)
    assert sink == b"hello"
    assert batch.transfers[0].path == "local"
    one.free(batch)
    one.close()


async def test_a_withdrawn_segment_is_stale_over_every_path() -> None:
    here, there = engine("here", 1), engine("there", 2)
    segment = there.export(there.register_memory(bytearray(10)), writable=True)
    there.withdraw(segment)
    for initiator in (here, there):
        results = await initiator.write(segment, [([memoryview(b"x")], 0)])
        assert isinstance(first_error(results), StaleSegment)
    here.close()
    there.close()


async def test_a_failed_path_is_replaced_by_the_next_one() -> None:
    hub = Hub()
    here = engine("here", 1, [hub.transport(), "tcp"])
    there = engine("there", 2, [hub.transport(), "tcp"])
    segment = there.export(there.register_memory(bytearray(10)), writable=True)
    batch = here.allocate_batch(2)
    request = TransferRequest(Kind.WRITE, (memoryview(b"x"),), segment, (Range(0, 1),))
    here.submit(batch, [request])
    assert here.wait(batch, 10)
    hub.failing.add("there")
    here.submit(batch, [request])
    assert here.wait(batch, 10)
    assert [transfer.path for transfer in batch.transfers] == ["memory", "tcp"]
    assert [state for state, _ in here.status(batch)] == [State.DONE, State.DONE]
    here.close()
    there.close()


async def test_when_no_path_is_left_the_error_says_whose() -> None:
    hub = Hub()
    here = engine("here", 1, [hub.transport()])
    there = engine("there", 2, ["tcp"])
    segment = there.export(there.register_memory(bytearray(10)), writable=True)
    error = first_error(await here.write(segment, [([memoryview(b"x")], 0)]))
    assert isinstance(error, PathFailed)
    assert str(error) == "no path to there: it offers tcp, here has memory"
    here.close()
    there.close()


async def test_one_failure_in_a_batch_leaves_the_others() -> None:
    here, there = engine("here", 1), engine("there", 2)
    region = there.register_memory(bytearray(100))
    segment = there.export(region, writable=True, ranges=[Range(0, 50)])
    results = await here.write(segment, [([memoryview(b"x")], 0), ([memoryview(b"x")], 60), ([memoryview(b"y")], 49)])
    assert results[0] is None
    assert isinstance(results[1], OutOfRange)
    assert results[2] is None
    here.close()
    there.close()


async def test_a_batch_has_a_capacity_and_is_freed_only_when_done() -> None:
    hub = Hub()
    here, there = engine("here", 1, [hub.transport()]), engine("there", 2, [hub.transport()])
    hub.stalled.add("there")
    segment = there.export(there.register_memory(bytearray(100)), writable=True)
    batch = here.allocate_batch(1)
    request = TransferRequest(Kind.WRITE, (memoryview(b"x"),), segment, (Range(0, 1),))
    here.submit(batch, [request], timeout_s=0.1)
    with pytest.raises(TransferError, match="under way"):
        here.free(batch)
    with pytest.raises(OutOfRange, match="batch of 1"):
        here.submit(batch, [request])
    assert here.wait(batch, 10)
    assert here.status(batch)[0][0] is State.FAILED
    here.free(batch)
    here.close()
    there.close()


async def test_cancelling_waits_until_the_memory_is_free() -> None:
    hub = Hub()
    here, there = engine("here", 1, [hub.transport()]), engine("there", 2, [hub.transport()])
    hub.stalled.add("there")
    segment = there.export(there.register_memory(bytearray(100)), writable=True)
    task = asyncio.create_task(here.write(segment, [([memoryview(b"x")], 0)], timeout_s=0.2))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    here.close()
    there.close()


def test_several_loops_share_an_engine() -> None:
    here, there = engine("here", 1), engine("there", 2)
    memory = bytearray(os.urandom(1 << 16))
    segment = there.export(there.register_memory(memory), writable=False)
    sinks = [bytearray(1 << 16) for _ in range(4)]

    def loop(sink: bytearray) -> None:
        asyncio.run(_read(here, segment, sink))

    threads = [threading.Thread(target=loop, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(sink == memory for sink in sinks)
    here.close()
    there.close()


async def _read(here: TransferEngine, segment: object, sink: bytearray) -> None:
    for _ in range(20):
        results = await here.read(segment, [([memoryview(sink)], 0)])  # type: ignore[arg-type]
        assert results == [None]


def test_a_transport_that_is_missing_here_is_spared_only_where_it_may_be(caplog: pytest.LogCaptureFixture) -> None:
    class Missing(TcpTransport):
        name = "missing"

        def __init__(self, settings: TransportSettings) -> None:
            raise PluginUnavailable("transport missing is not available: no such device")

    with pytest.raises(PluginUnavailable):
        engine("here", 1, [Missing, "tcp"])
    both: list[type[Transport] | str] = [Missing, "tcp"]
    spared = TransferEngine(owner="here", host_id="h", incarnation=1, transports=both, optional=[Missing.name])
    assert [*spared.export(spared.register_memory(bytearray(10)), writable=True).paths] == ["local", "tcp"]
    assert "here does without: transport missing is not available: no such device" in caplog.text
    spared.close()


def test_read_only_memory_cannot_be_registered() -> None:
    one = engine("one", 1)
    with pytest.raises(OutOfRange, match="read-only"):
        one.register_memory(memoryview(b"constant"))
    one.close()


def test_closing_twice_is_harmless_and_frees_all() -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        one = engine("one", 1)
        one.close()
        one.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


SIZES = st.lists(st.integers(0, 50), max_size=20)


@given(near=SIZES, far=SIZES, slice_bytes=st.integers(1, 40))
def test_slices_and_pairs_are_the_transfer(near: list[int], far: list[int], slice_bytes: int) -> None:
    far = [*far, max(0, sum(near) - sum(far))]
    near = [*near, max(0, sum(far) - sum(near))]
    pieces = [memoryview(os.urandom(size)) for size in near]
    memory = memoryview(bytearray(sum(far) * 2 + 1))
    starts = [2 * sum(far[:index]) for index in range(len(far))]
    ranges = [Range(start, size) for start, size in zip(starts, far, strict=True)]
    slices = cut(pieces, ranges, slice_bytes)
    for parts, places in slices:
        length = sum(part.nbytes for part in parts)
        assert length == sum(part.length for part in places)
        assert length <= slice_bytes or len(slices) == 1
        there = [memory[part.offset : part.offset + part.length] for part in places]
        for here, remote in pair(parts, there):
            remote[:] = here
    arrived = b"".join(bytes(memory[part.offset : part.offset + part.length]) for part in ranges)
    assert arrived == b"".join(map(bytes, pieces))


@pytest.mark.parametrize(
    ("num_bytes", "num_ways", "expected"),
    [
        (100, 4, 1 << 20),
        (1 << 20, 4, 1 << 20),
        (8 << 20, 4, 2 << 20),
        ((8 << 20) + 1, 4, (2 << 20) + 4096),
        (8 << 20, 1, 4 << 20),
        (1 << 30, 4, 4 << 20),
    ],
)
def test_slices_are_as_long_as_lets_every_connection_have_one(num_bytes: int, num_ways: int, expected: int) -> None:
    assert slice_bytes(num_bytes, num_ways) == expected


def test_all_connections_to_a_peer_carry_one_transfer() -> None:
    here = TransferEngine(owner="here", host_id="h", incarnation=1, transports=["tcp"], connections_per_peer=4)
    there = engine("there", 2)
    memory = bytearray(os.urandom(4 << 20))
    segment = there.export(there.register_memory(memory), writable=False)
    sink = bytearray(len(memory))
    batch = here.allocate_batch(1)
    here.submit(batch, [TransferRequest(Kind.READ, (memoryview(sink),), segment, (Range(0, len(sink)),))])
    assert here.wait(batch, 10)
    assert sink == memory
    transport = here._paths["tcp"]
    assert isinstance(transport, TcpTransport)
    assert [len(pool) for pool in transport._connections.values()] == [4]
    here.close()
    there.close()


def test_two_ends_of_different_lengths_are_refused() -> None:
    one = engine("one", 1)
    segment = one.export(one.register_memory(bytearray(10)), writable=True)
    with pytest.raises(OutOfRange, match="1 bytes, the remote ranges 2"):
        one.submit(one.allocate_batch(1), [TransferRequest(Kind.WRITE, (memoryview(b"x"),), segment, (Range(0, 2),))])
    one.close()


@pytest.mark.parametrize("ranges", [(Range(-1, 1),), (Range(0, 1), Range(-5, 0))])
def test_ranges_before_a_segment_are_refused(ranges: tuple[Range, ...]) -> None:
    one = engine("one", 1)
    segment = one.export(one.register_memory(bytearray(10)), writable=True)
    with pytest.raises(OutOfRange, match="got one that begins at -"):
        one.submit(one.allocate_batch(1), [TransferRequest(Kind.WRITE, (memoryview(b"x"),), segment, ranges)])
    one.close()
