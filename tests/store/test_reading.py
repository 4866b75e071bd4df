"""What a get believes: only bytes that are those put, of the object asked for, read within the lease."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from mooncake_core.store.checksums import ON_LOOP_BYTES, Choice
from mooncake_core.store.layout import ALIGNMENT, Header, pack_header, unpack_header
from tests.store.held_transport import held_transport
from tests.store.world import SIZE, World, world


@pytest.mark.parametrize("size", [SIZE, ON_LOOP_BYTES + 1])
async def test_damaged_bytes_are_a_miss(size: int) -> None:
    async with world("a", capacity=4 * ON_LOOP_BYTES) as w:
        await w.put("k", size=size)
        w.damage("a")
        assert (await w.get("k", size=size))[0] == [False]


@pytest.mark.parametrize("node", ["a", "b"])
async def test_the_other_replica_is_read_when_one_is_damaged(node: str) -> None:
    async with world("a", "b") as w:
        codes, (value,) = await w.put("k", replicas=2)
        assert codes == [""]
        w.damage(node)
        assert await w.get("k") == ([True], [value])


def change_header(w: World, **changes: object) -> None:
    """As if the space of the node's first object had been given to another one."""
    _, slot = w.slot_of("a")
    view = w.nodes["a"][0]._view
    header = unpack_header(view[slot.offset : slot.offset + ALIGNMENT])
    assert isinstance(header, Header)
    other = pack_header(replace(header, **changes))  # type: ignore[arg-type]
    view[slot.offset : slot.offset + len(other)] = other


@pytest.mark.parametrize("changes", [{"allocation_id": 5}, {"key": "j"}])
@pytest.mark.parametrize("checksum", ["auto", "off"])
async def test_space_that_holds_another_object_is_a_miss(changes: dict[str, object], checksum: Choice) -> None:
    async with world("a", checksum=checksum) as w:
        await w.put("k")
        change_header(w, **changes)
        assert (await w.get("k"))[0] == [False]


async def test_what_was_read_when_the_lease_had_ended_is_a_miss() -> None:
    async with world("a", read_lease_s=0.3) as w:
        _, (value,) = await w.put("k")
        reading = await w.store.begin_get(["k"], timeout_s=5)
        buffer = bytearray(SIZE)
        await reading.read({0: [memoryview(buffer)]})
        assert buffer == value
        await asyncio.sleep(0.4)
        assert reading.finish() == [False]


@pytest.mark.parametrize(
    ("checksum", "transport", "noticed"),
    [("auto", "tcp", True), ("auto", "shm", False), ("on", "shm", True), ("off", "tcp", False)],
)
async def test_the_checksum_is_verified_where_it_is_wanted(checksum: Choice, transport: str, noticed: bool) -> None:
    async with world("a", checksum=checksum, transports=[transport]) as w:
        await w.put("k")
        w.damage("a")
        assert (await w.get("k"))[0] == [not noticed]


async def test_a_transport_of_which_nothing_is_known_is_verified() -> None:
    _, transport = held_transport()
    async with world("a", transports=[transport]) as w:
        await w.put("k")
        w.damage("a")
        assert (await w.get("k"))[0] == [False]


async def test_an_object_read_in_parts_is_verified_as_a_whole() -> None:
    async with world("a") as w:
        _, (value,) = await w.put("k")
        for damaged in (False, True):
            if damaged:
                w.damage("a")
            reading = await w.store.begin_get(["k"], timeout_s=5)
            buffer = memoryview(bytearray(SIZE))
            for start in range(0, SIZE, 2500):
                await reading.read({0: [buffer[start : start + 2500]]})
            assert reading.finish() == [not damaged]
            assert damaged or buffer == value
