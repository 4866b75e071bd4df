"""One transfer at a time, and many in one call."""

from __future__ import annotations

from typing import Any

from .world import MIB, NOBODY, REGION_BYTES, World, case, pattern, raises

BEYOND = "a transfer from or to local memory beyond what was registered"
SIZES = [1, 7, 63, 64, 65, 4095, 4096, 4097, 65_536, MIB, 5 * MIB + 3]


@case(*SIZES)
def write_and_read(world: World, size: int) -> None:
    source, sink = world.memory(size, pattern(size, seed=size)), world.memory(size)
    assert world.engine.transfer_sync_write(world.far.name, source.address, world.far.address + 1, size) == 0
    assert world.far.content(size + 1)[1:] == source.content
    assert world.engine.transfer_sync_read(world.far.name, sink.address, world.far.address + 1, size) == 0
    assert sink.content == source.content


@case("Read", "Write")
def either_way(world: World, name: str) -> None:
    opcode = getattr(world.module.TransferOpcode, name)
    memory = world.memory(100, pattern(100, 1))
    far = world.far.memory(100)
    assert world.engine.transfer_sync(world.far.name, memory.address, far, 100, opcode) == 0
    expected = pattern(100, 1) if name == "Write" else bytes(100)
    assert (memory.content, world.far.content(100, far)) == (expected, expected)
    assert world.engine.batch_transfer_sync(world.far.name, [memory.address], [far], [100], opcode) == 0
    assert world.far.ask("unregister_memory", far) == 0


@case("", "tcp")
def with_a_hint(world: World, hint: str) -> None:
    memory = world.memory(100, pattern(100, 2))
    assert world.engine.transfer_sync_write(world.far.name, memory.address, world.far.address, 100, hint) == 0
    assert (
        world.engine.transfer_sync_read(
            target_hostname=world.far.name,
            buffer=memory.address,
            peer_buffer_address=world.far.address,
            length=100,
            transport_hint=hint,
        )
        == 0
    )


@case()
def nothing_moves(world: World) -> None:
    memory = world.memory(100)
    assert world.engine.transfer_sync_write(world.far.name, memory.address, world.far.address, 0) == 0


@case()
def to_the_end_of_a_region(world: World) -> None:
    memory = world.memory(100, pattern(100, 3))
    place = world.far.address + REGION_BYTES - 100
    assert world.engine.transfer_sync_write(world.far.name, memory.address, place, 100) == 0
    assert world.far.content(100, place) == memory.content


@case()
def local_memory_need_not_be_registered(world: World) -> None:
    memory = world.memory(100, pattern(100, 4), registered=False)
    assert world.engine.transfer_sync_write(world.far.name, memory.address, world.far.address, 100) == 0
    assert world.far.content(100) == memory.content
    assert world.engine.transfer_sync_read(world.far.name, memory.address, world.far.address + 5, 50) == 0
    assert memory.content[:50] == pattern(100, 4)[5:55]


@case(differs=BEYOND)
def beyond_local_memory(world: World) -> None:
    memory = world.memory(100)
    assert world.engine.transfer_sync_write(world.far.name, memory.address + 60, world.far.address, 50) == -1


@case()
def local_memory_that_is_none(world: World) -> None:
    assert world.engine.transfer_sync_write(world.far.name, 4096, world.far.address, 50) == -1


@case("read", "write")
def far_memory_that_is_not_registered(world: World, way: str) -> None:
    far = world.far.memory(100, registered=False)
    move = getattr(world.engine, f"transfer_sync_{way}")
    memory = world.memory(100)
    assert move(world.far.name, memory.address, far, 100) == -1
    assert (world.far.content(100, far), memory.content) == (bytes(100), b"\xa5" * 100)


@case((REGION_BYTES - 10, 11), (REGION_BYTES, 1), (-1, 10), (0, REGION_BYTES + 1))
def beyond_a_far_region(world: World, offset: int, size: int) -> None:
    memory = world.memory(size)
    before = world.far.content(20)
    assert world.engine.transfer_sync_write(world.far.name, memory.address, world.far.address + offset, size) == -1
    assert world.far.content(20) == before


@case(NOBODY, "nobody", "", "127.0.0.1", "127.0.0.1:99999")
def to_nobody(world: World, name: str) -> None:
    memory = world.memory(100)
    assert world.engine.transfer_sync_write(name, memory.address, world.far.address, 100) == -1
    assert world.engine.batch_transfer_sync_read(name, [memory.address], [world.far.address], [100]) == -1


@case()
def to_itself(world: World) -> None:
    memory = world.memory(1000, pattern(1000, 5))
    assert world.engine.transfer_sync_write(world.name, memory.address, memory.address + 500, 400) == 0
    assert memory.content == pattern(1000, 5)[:500] + pattern(1000, 5)[:400] + pattern(1000, 5)[900:]


@case(
    (7, 4096, 4096, 10),
    (NOBODY, "x", 4096, 10),
    (NOBODY, 4096, None, 10),
    (NOBODY, 4096, 4096, -1),
    (NOBODY, 4096, 4096, 1.5),
    (NOBODY, -4096, 4096, 10),
    (NOBODY, 4096, 4096),
)
def wants_numbers(world: World, *arguments: Any) -> None:
    raises(TypeError, lambda: world.engine.transfer_sync_write(*arguments))
    raises(TypeError, lambda: world.engine.transfer_sync_read(*arguments))


@case(1, 2, 3, 128, 1000)
def batch_write_and_read(world: World, count: int) -> None:
    size = 700
    source, sink = world.memory(count * size, pattern(count * size, 6)), world.memory(count * size)
    near = [source.address + size * index for index in range(count)]
    far = [world.far.address + 1000 * (count - index) for index in range(count)]
    assert world.engine.batch_transfer_sync_write(world.far.name, near, far, [size] * count) == 0
    content = world.far.content(1000 * (count + 1))
    for index in range(count):
        place = 1000 * (count - index)
        assert content[place : place + size] == source.content[size * index : size * (index + 1)]
    back = [sink.address + size * index for index in range(count)]
    assert world.engine.batch_transfer_sync_read(world.far.name, back, far, [size] * count) == 0
    assert sink.content == source.content


@case()
def batch_of_64_blocks_of_64_kib(world: World) -> None:
    count, size = 64, 65_536
    source = world.memory(count * size, pattern(count * size, 8))
    near = [source.address + size * index for index in range(count)]
    far = [world.far.address + size * index for index in range(count)]
    assert world.engine.batch_transfer_sync_write(world.far.name, near, far, [size] * count) == 0
    assert world.far.content(count * size) == source.content


@case()
def batch_over_several_regions(world: World) -> None:
    regions = [world.far.memory(100) for _ in range(5)]
    source = world.memory(500, pattern(500, 9))
    near = [source.address + 100 * index for index in range(5)]
    assert world.engine.batch_transfer_sync_write(world.far.name, near, regions, [100] * 5) == 0
    assert b"".join(world.far.content(100, region) for region in regions) == source.content
    assert world.far.ask("batch_unregister_memory", regions) == 0


@case()
def batch_of_many_lengths(world: World) -> None:
    lengths = [0, 1, 10, 0, 1000, 3, 65_537]
    source = world.memory(sum(lengths), pattern(sum(lengths), 10))
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    near = [source.address + start for start in starts]
    far = [world.far.address + start for start in starts]
    assert world.engine.batch_transfer_sync_write(world.far.name, near, far, lengths) == 0
    assert world.far.content(sum(lengths)) == source.content


@case()
def batch_of_none(world: World) -> None:
    assert world.engine.batch_transfer_sync_write(world.far.name, [], [], []) == 0
    assert world.engine.batch_transfer_sync_read(world.far.name, [], [], []) == 0


@case(([1], [1, 2], [1]), ([1, 2], [1], [1, 1]), ([1], [1], []))
def batch_of_unequal_lists(world: World, near: list[int], far: list[int], lengths: list[int]) -> None:
    assert world.engine.batch_transfer_sync_write(world.far.name, near, far, lengths) == -1


@case()
def batch_takes_tuples(world: World) -> None:
    memory = world.memory(100, pattern(100, 11))
    assert world.engine.batch_transfer_sync_write(world.far.name, (memory.address,), (world.far.address,), (100,)) == 0
    assert world.far.content(100) == memory.content


@case()
def batch_with_one_that_fails(world: World) -> None:
    memory = world.memory(100)
    bad = world.far.memory(100, registered=False)
    code = world.engine.batch_transfer_sync_write(
        world.far.name, [memory.address] * 2, [world.far.address, bad], [100, 100]
    )
    assert code == -1
    assert world.far.content(100, bad) == bytes(100)


@case(([1.5], [1], [1]), (["x"], [1], [1]), ([1], [-1], [1]), (7, [1], [1]), ([1], None, [1]))
def batch_wants_lists_of_numbers(world: World, *arguments: Any) -> None:
    raises(TypeError, lambda: world.engine.batch_transfer_sync_write(world.far.name, *arguments))
