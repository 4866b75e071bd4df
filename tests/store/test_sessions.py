"""Objects written and read in ranges, over real sockets."""

from __future__ import annotations

import asyncio
import os

import pytest

from mooncake_core.errors import InvalidRequest, StaleAllocation, TransferError
from mooncake_core.store.checksums import NO_CHECKSUM
from mooncake_core.store.client import PutOptions
from mooncake_core.wire.messages.pool import NewObject
from tests.store.world import SIZE, World, world

LAYERS = 5
LAYER = SIZE // LAYERS


def new(*keys: str, size: int = SIZE) -> list[NewObject]:
    return [NewObject(key=key, size_bytes=size) for key in keys]


def layers(value: bytes) -> list[tuple[int, list[memoryview]]]:
    """Offsets and bytes."""
    return [(start, [memoryview(value)[start : start + LAYER]]) for start in range(0, SIZE, LAYER)]


async def checksum_of(w: World, key: str) -> int:
    (found,) = await w.store.describe([key], timeout_s=5)
    assert found is not None
    return found.checksum


@pytest.mark.parametrize("transport", ["tcp", "shm"])
async def test_ranges_are_written_in_any_order_and_committed_at_once(transport: str) -> None:
    async with world("a", "b", transports=[transport]) as w:
        values = [os.urandom(SIZE), os.urandom(SIZE)]
        putting = await w.store.begin_put(new("k0", "k1"), timeout_s=5, replicas=2)
        for number in (3, 1, 4, 0, 2):
            await putting.write_at([(index, *layers(values[index])[number]) for index in (1, 0)])
            assert await w.store.exists(["k0", "k1"], timeout_s=5) == [False, False]
        assert await putting.end(timeout_s=5) == ["", ""]
        assert await w.get("k0", "k1") == ([True, True], values)
        assert await checksum_of(w, "k0") == NO_CHECKSUM


async def test_what_is_written_in_order_can_be_verified() -> None:
    async with world("a") as w:
        value = os.urandom(SIZE)
        putting = await w.store.begin_put(new("k"), timeout_s=5)
        for offset, pieces in layers(value):
            await putting.write_at([(0, offset, pieces)])
        assert await putting.end(timeout_s=5) == [""]
        assert await checksum_of(w, "k") != NO_CHECKSUM
        w.damage("a")
        assert (await w.get("k"))[0] == [False]


async def test_an_object_with_a_gap_is_not_committed_and_the_others_are() -> None:
    async with world("a") as w:
        value = os.urandom(SIZE)
        putting = await w.store.begin_put(new("whole", "gap", "nothing"), timeout_s=5)
        await putting.write_at((0, *layer) for layer in reversed(layers(value)))
        await putting.write_at((1, *layer) for layer in layers(value)[1:])
        assert await putting.end(timeout_s=5) == ["", TransferError.code, TransferError.code]
        assert await w.store.exists(["whole", "gap", "nothing"], timeout_s=5) == [True, False, False]
        assert w.pool.report(0).num_writing == 0


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE + 1), (SIZE, 1), (-1, 1)])
async def test_bytes_outside_of_the_object_are_refused_before_anything_is_written(offset: int, length: int) -> None:
    async with world("a") as w:
        putting = await w.store.begin_put(new("k"), timeout_s=5)
        with pytest.raises(InvalidRequest, match=f"within the object's {SIZE}"):
            await putting.write_at([(0, offset, [memoryview(bytes(length))])])
        await putting.write({0: [memoryview(bytes(SIZE))]})
        with pytest.raises(InvalidRequest):
            await putting.write({0: [memoryview(b"x")]})
        assert await putting.end(timeout_s=5) == [""]


async def test_some_objects_of_a_put_are_ended_before_the_others() -> None:
    async with world("a") as w:
        values = [os.urandom(SIZE) for _ in range(3)]
        putting = await w.store.begin_put(new("k0", "k1", "k2"), timeout_s=5)
        await putting.write({0: [memoryview(values[0])], 1: [memoryview(values[1])]})
        await putting.end_some([0], timeout_s=5)
        await putting.end_some([1], timeout_s=5, commit=False)
        assert await w.store.exists(["k0", "k1", "k2"], timeout_s=5) == [True, False, False]
        assert list(putting.granted) == [2]
        await putting.write({2: [memoryview(values[2])]})
        assert await putting.end(timeout_s=5) == ["", TransferError.code, ""]
        assert (await w.get("k0", "k2")) == ([True, True], [values[0], values[2]])


async def test_a_revoked_put_frees_at_once_and_an_abandoned_one_after_its_deadline() -> None:
    async with world("a", writer_deadline_s=0.2) as w:
        putting = await w.store.begin_put(new("revoked"), timeout_s=5)
        await putting.write({0: [memoryview(bytes(SIZE))]})
        await putting.end(timeout_s=5, commit=False)
        assert (await w.put("revoked"))[0] == [""]
        abandoned = await w.store.begin_put(new("abandoned"), timeout_s=5)
        assert (await w.put("abandoned"))[0] == ["object_exists"]
        async with asyncio.timeout(5):
            while (await w.put("abandoned"))[0] != [""]:
                await asyncio.sleep(0.02)
        await abandoned.write({0: [memoryview(bytes(SIZE))]})
        assert await abandoned.end(timeout_s=5) in ([TransferError.code], [StaleAllocation.code])
        assert (await w.get("abandoned"))[0] == [True]


@pytest.mark.parametrize("transport", ["tcp", "shm"])
async def test_ranges_of_objects_are_read(transport: str) -> None:
    async with world("a", "b", transports=[transport]) as w:
        _, values = await w.put("k0", "k1")
        buffers = [bytearray(100) for _ in range(4)]
        first, second, third, fourth = ([memoryview(buffer)] for buffer in buffers)
        cuts = [[(900, first), (0, second)], [(SIZE - 100, third)], [(0, fourth)], [(SIZE - 99, fourth)]]
        read = await w.store.read_ranges(["k0", "k1", "missing", "k0"], cuts, timeout_s=5)
        assert read == [True, True, False, False]
        assert buffers[0] == values[0][900:1000]
        assert buffers[1] == values[0][:100]
        assert buffers[2] == values[1][-100:]
        assert buffers[3] == bytes(100)


async def test_a_range_is_read_from_the_next_replica_when_a_node_is_dead() -> None:
    async with world("a", "b") as w:
        _, (value,) = await w.put("k", replicas=2)
        await w.kill_node("a")
        buffer = bytearray(10)
        assert await w.store.read_ranges(["k"], [[(5, [memoryview(buffer)])]], timeout_s=5) == [True]
        assert buffer == value[5:15]


async def test_a_get_session_goes_on_as_long_as_it_is_renewed() -> None:
    async with world("a", read_lease_s=0.3) as w:
        _, (value,) = await w.put("k")
        session = await w.store.begin_get_session(["missing", "k"], timeout_s=5)
        assert (session.size_bytes(0), session.size_bytes(1)) == (None, SIZE)
        buffer = bytearray(LAYER)
        for offset, _ in layers(value):
            assert await session.renew(timeout_s=5) == [False, True]
            assert await session.read({1: [(offset, [memoryview(buffer)])]}, timeout_s=5) == {1: True}
            assert buffer == value[offset : offset + LAYER]
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.3)
        assert await session.read({1: [(0, [memoryview(buffer)])]}, timeout_s=5) == {1: False}
        assert await session.renew(timeout_s=5) == [False, True]
        assert await session.read({1: [(0, [memoryview(buffer)])]}, timeout_s=5) == {1: True}
        with pytest.raises(InvalidRequest, match="within"):
            await session.read({1: [(SIZE, [memoryview(buffer)])]}, timeout_s=5)


async def test_a_session_reads_the_old_object_until_it_is_renewed() -> None:
    async with world("a") as w:
        _, (old,) = await w.put("k")
        session = await w.store.begin_get_session(["k"], timeout_s=5)
        putting = await w.store.begin_put(new("k"), timeout_s=5, options=PutOptions(upsert=True))
        fresh = os.urandom(SIZE)
        await putting.write({0: [memoryview(fresh)]})
        assert await w.get("k") == ([True], [old])
        assert await putting.end(timeout_s=5) == [""]
        assert await w.get("k") == ([True], [fresh])
        buffer = bytearray(SIZE)
        assert await session.read({0: [(0, [memoryview(buffer)])]}, timeout_s=5) == {0: True}
        assert buffer == old
        assert await session.renew(timeout_s=5) == [False]
