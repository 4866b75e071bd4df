"""Transfers that go on meanwhile, and many threads."""

from __future__ import annotations

import time
from typing import Any

from .world import MIB, NOBODY, World, case, in_threads, pattern, raises

ENDED = "`transfer_check_status` of a batch that has ended"
UNKNOWN = "`transfer_check_status` and `get_batch_transfer_status` of what is no batch"
THREADS = 10


@case(1, 5, 200)
def write_meanwhile(world: World, count: int) -> None:
    size = 5000
    source = world.memory(count * size, pattern(count * size, 12))
    near = [source.address + size * index for index in range(count)]
    far = [world.far.address + size * index for index in range(count)]
    number = world.engine.batch_transfer_async_write(world.far.name, near, far, [size] * count)
    assert 0 < number < 1 << 63
    assert world.status(number) == 1
    world.moved(lambda: world.far.content(count * size) == source.content)


@case(1, 5, 200)
def read_meanwhile(world: World, count: int) -> None:
    size = 5000
    source, sink = world.memory(count * size, pattern(count * size, 13)), world.memory(count * size)
    assert world.engine.transfer_sync_write(world.far.name, source.address, world.far.address, count * size) == 0
    near = [sink.address + size * index for index in range(count)]
    far = [world.far.address + size * index for index in range(count)]
    number = world.engine.batch_transfer_async_read(world.far.name, near, far, [size] * count)
    assert world.status(number) == 1
    world.moved(lambda: sink.content == source.content)


@case("Read", "Write")
def either_meanwhile(world: World, name: str) -> None:
    opcode = getattr(world.module.TransferOpcode, name)
    memory = world.memory(100, pattern(100, 14))
    number = world.engine.batch_transfer_async(
        world.far.name, [memory.address], [world.far.address], [100], opcode=opcode
    )
    assert world.status(number) == 1
    assert world.far.content(100) == memory.content


@case()
def submit_a_write(world: World) -> None:
    memory = world.memory(2 * MIB, pattern(2 * MIB, 15))
    number = world.engine.transfer_submit_write(world.far.name, memory.address, world.far.address, 2 * MIB)
    assert world.status(number) == 1
    assert world.far.content(2 * MIB) == memory.content


@case()
def several_meanwhile(world: World) -> None:
    memory = world.memory(MIB, pattern(MIB, 16))
    numbers = [
        world.engine.batch_transfer_async_write(
            world.far.name, [memory.address + 1000 * index], [world.far.address + 1000 * index], [1000]
        )
        for index in range(50)
    ]
    assert len(set(numbers)) == 50
    assert world.engine.get_batch_transfer_status(numbers) == 0
    world.moved(lambda: world.far.content(50_000) == memory.content[:50_000])


@case()
def waiting_for_none(world: World) -> None:
    assert world.engine.get_batch_transfer_status([]) == 0


@case()
def one_that_fails_meanwhile(world: World) -> None:
    memory, bad = world.memory(100), world.far.memory(100, registered=False)
    assert world.far.ask("register_memory", bad, 100) == 0
    assert world.engine.transfer_sync_write(world.far.name, memory.address, bad, 100) == 0
    assert world.far.ask("unregister_memory", bad) == 0  # known here, and gone
    number = world.engine.batch_transfer_async_write(world.far.name, [memory.address], [bad], [100])
    assert number > 0
    assert world.status(number) == -1


@case()
def waiting_for_one_that_fails(world: World) -> None:
    memory, bad = world.memory(100), world.far.memory(100, registered=False)
    assert world.far.ask("register_memory", bad, 100) == 0
    assert world.engine.transfer_sync_write(world.far.name, memory.address, bad, 100) == 0
    assert world.far.ask("unregister_memory", bad) == 0
    good = world.engine.batch_transfer_async_write(world.far.name, [memory.address], [world.far.address], [100])
    number = world.engine.batch_transfer_async_write(world.far.name, [memory.address], [bad], [100])
    assert world.engine.get_batch_transfer_status([good, number]) == -1


@case()
def meanwhile_to_nobody(world: World) -> None:
    memory = world.memory(100)
    assert world.engine.batch_transfer_async_write(NOBODY, [memory.address], [world.far.address], [100]) == 0
    assert world.engine.transfer_submit_write(NOBODY, memory.address, world.far.address, 100) == 0


@case()
def unequal_lists_meanwhile(world: World) -> None:
    assert world.engine.batch_transfer_async_write(world.far.name, [4096], [], []) == 0


@case(differs=ENDED)
def asking_again_after_the_end(world: World) -> None:
    memory = world.memory(100)
    number = world.engine.transfer_submit_write(world.far.name, memory.address, world.far.address, 100)
    assert world.status(number) == 1
    assert world.engine.transfer_check_status(number) == -1


@case(differs=UNKNOWN)
def asking_for_what_is_no_batch(world: World) -> None:
    assert world.engine.transfer_check_status(0) == -1
    assert world.engine.get_batch_transfer_status([0]) == -1


@case("x", None, -1, 1.5)
def asking_wants_a_number(world: World, number: Any) -> None:
    raises(TypeError, lambda: world.engine.transfer_check_status(number))


@case(1, 1000, 200_000)
def threads_write_and_read(world: World, size: int) -> None:
    sources = [world.memory(size, pattern(size, 17 + number)) for number in range(THREADS)]
    sinks = [world.memory(size) for _ in range(THREADS)]

    def work(number: int) -> bool:
        place = world.far.address + number * size
        codes = [
            move(world.far.name, memory.address, place, size)
            for _ in range(10)
            for move, memory in (
                (world.engine.transfer_sync_write, sources[number]),
                (world.engine.transfer_sync_read, sinks[number]),
            )
        ]
        return set(codes) == {0} and sinks[number].content == sources[number].content

    assert in_threads(THREADS, work) == [True] * THREADS


@case()
def threads_write_batches(world: World) -> None:
    source = world.memory(THREADS * 64_000, pattern(THREADS * 64_000, 30))

    def work(number: int) -> int:
        starts = [number * 64_000 + 1000 * index for index in range(64)]
        return sum(
            abs(
                world.engine.batch_transfer_sync_write(
                    world.far.name,
                    [source.address + start for start in starts],
                    [world.far.address + start for start in starts],
                    [1000] * 64,
                )
            )
            for _ in range(10)
        )

    assert in_threads(THREADS, work) == [0] * THREADS
    assert world.far.content(THREADS * 64_000) == source.content


@case()
def threads_register_their_own(world: World) -> None:
    memories = [world.memory(1000, pattern(1000, number), registered=False) for number in range(THREADS)]

    def work(number: int) -> set[int]:
        memory = memories[number]
        codes = set()
        for _ in range(20):
            codes.add(world.engine.register_memory(memory.address, 1000))
            place = world.far.address + 1000 * number
            codes.add(world.engine.transfer_sync_write(world.far.name, memory.address, place, 1000))
            codes.add(world.engine.unregister_memory(memory.address))
        return codes

    assert in_threads(THREADS, work) == [{0}] * THREADS


@case()
def other_threads_run_meanwhile(world: World) -> None:
    memory = world.memory(4 * MIB)
    done: list[int] = []

    def work(number: int) -> int:
        if number:
            while not done:
                time.sleep(0)
            return 1
        codes = [
            world.engine.transfer_sync_write(world.far.name, memory.address, world.far.address, 4 * MIB)
            for _ in range(10)
        ]
        done.append(1)
        return len(codes)

    assert in_threads(2, work) == [10, 1]
