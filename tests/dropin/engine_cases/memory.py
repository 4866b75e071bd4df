"""Memory that is registered, and memory that the engine gives."""

from __future__ import annotations

import itertools
from array import array
from typing import Any

from .world import Memory, World, case, pattern, raises

NO_MEMORY = "`register_memory` of what is no memory"
LENGTHS = "`batch_register_memory` of lists that differ in length"
FREED_TWICE = "`free_managed_buffer` of what was not allocated"
LONGER = "`write_bytes_to_buffer` of more bytes than there are"
NO_READ = "`read_bytes_from_buffer` of what is no memory"


@case(1, 100, 4096, 5_000_000)
def register_and_unregister(world: World, size: int) -> None:
    memory = Memory(size)
    for _ in range(3):
        assert world.engine.register_memory(memory.address, size) == 0
        assert world.engine.unregister_memory(memory.address) == 0


@case("*", "cpu:0", "anything")
def register_with_a_location(world: World, location: str) -> None:
    memory = Memory(100)
    assert world.engine.register_memory(memory.address, 100, location) == 0
    assert world.engine.unregister_memory(memory.address) == 0


@case()
def register_by_keywords(world: World) -> None:
    memory = Memory(100)
    assert world.engine.register_memory(buffer_addr=memory.address, capacity=100, location="*") == 0
    assert world.engine.unregister_memory(memory.address) == 0


@case((0, 100), (10, 10), (0, 10), (99, 1))
def register_what_overlaps(world: World, offset: int, size: int) -> None:
    memory = world.memory(100)
    assert world.engine.register_memory(memory.address + offset, size) == -7


@case()
def register_neighbours(world: World) -> None:
    memory = Memory(100)
    assert world.engine.register_memory(memory.address, 50) == 0
    assert world.engine.register_memory(memory.address + 50, 50) == 0
    assert world.engine.batch_unregister_memory([memory.address, memory.address + 50]) == 0


@case()
def register_nothing(world: World) -> None:
    assert world.engine.register_memory(Memory(10).address, 0) == -1


@case(0, 4096, differs=NO_MEMORY)
def register_no_memory(world: World, address: int) -> None:
    assert world.engine.register_memory(address, 100) == -999


@case(("x", 10), (None, 10), (1.5, 10), (-1, 10), (4096, -1), (4096, "x"))
def register_wants_numbers(world: World, address: Any, size: Any) -> None:
    raises(TypeError, lambda: world.engine.register_memory(address, size))


class Whole:
    """A whole number that is no int, as NumPy's are."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


@case()
def whole_numbers_of_other_types(world: World) -> None:
    memory, engine = Memory(100), world.engine
    assert engine.register_memory(Whole(memory.address), Whole(100)) == 0
    assert engine.transfer_sync_write(world.far.name, Whole(memory.address), Whole(world.far.address), Whole(100)) == 0
    assert engine.unregister_memory(Whole(memory.address)) == 0
    assert engine.batch_register_memory([Whole(memory.address)], (True,)) == 0
    assert engine.batch_unregister_memory(array("Q", [memory.address])) == 0


@case()
def unregister_what_is_not(world: World) -> None:
    assert world.engine.unregister_memory(Memory(100).address) == -3


@case()
def unregister_the_middle(world: World) -> None:
    assert world.engine.unregister_memory(world.memory(100).address + 10) == -3


@case()
def unregister_twice(world: World) -> None:
    memory = Memory(100)
    assert world.engine.register_memory(memory.address, 100) == 0
    assert [world.engine.unregister_memory(memory.address) for _ in range(2)] == [0, -3]


@case(1, 2, 50)
def batch_register(world: World, count: int) -> None:
    memories = [Memory(1000) for _ in range(count)]
    addresses = [memory.address for memory in memories]
    assert world.engine.batch_register_memory(addresses, [1000] * count) == 0
    assert world.engine.register_memory(addresses[-1], 10) == -7
    assert world.engine.batch_unregister_memory(addresses) == 0
    assert world.engine.batch_register_memory(addresses, [1000] * count) == 0
    assert world.engine.batch_unregister_memory(addresses) == 0


@case()
def batch_register_of_none(world: World) -> None:
    assert world.engine.batch_register_memory([], []) == 0
    assert world.engine.batch_unregister_memory([]) == 0


@case()
def batch_register_what_overlaps_registers_none(world: World) -> None:
    one, two = Memory(100), Memory(100)
    assert world.engine.batch_register_memory([one.address, two.address, one.address + 5], [100, 100, 5]) == -7
    assert [world.engine.unregister_memory(memory.address) for memory in (one, two)] == [-3, -3]


@case(differs=LENGTHS)
def batch_register_of_unequal_lists(world: World) -> None:
    assert world.engine.batch_register_memory([Memory(100).address], []) == -1


@case()
def batch_unregister_what_is_not(world: World) -> None:
    assert world.engine.batch_unregister_memory([Memory(100).address]) == -3


@case(7, None, "ab", [["x"]])
def batch_register_wants_lists(world: World, addresses: Any) -> None:
    raises(TypeError, lambda: world.engine.batch_register_memory(addresses, [10]))


@case(1, 5000, 3 << 20)
def managed_memory(world: World, size: int) -> None:
    address = world.engine.allocate_managed_buffer(size)
    assert address > 0
    text = "some text"[:size]
    assert world.engine.write_bytes_to_buffer(address, text, len(text)) == 0
    assert world.engine.read_bytes_from_buffer(address, len(text)) == text.encode()
    assert world.engine.free_managed_buffer(address, size) == 0


@case()
def managed_memory_is_registered(world: World) -> None:
    address = world.engine.allocate_managed_buffer(4096)
    assert world.engine.write_bytes_to_buffer(address, "hello", 5) == 0
    assert world.far.ask("transfer_sync_read", world.name, world.far.address, address, 5) == 0
    assert world.far.content(5) == b"hello"
    assert world.engine.transfer_sync_write(world.far.name, address, world.far.address + 100, 5) == 0
    assert world.far.content(105)[100:] == b"hello"
    assert world.engine.free_managed_buffer(address, 4096) == 0


@case()
def managed_memories_differ(world: World) -> None:
    addresses = [world.engine.allocate_managed_buffer(10_000) for _ in range(20)]
    ordered = sorted(addresses)
    assert all(after - before >= 10_000 for before, after in itertools.pairwise(ordered))
    assert [world.engine.free_managed_buffer(address, 10_000) for address in addresses] == [0] * 20


@case(differs=FREED_TWICE)
def managed_memory_freed_twice(world: World) -> None:
    address = world.engine.allocate_managed_buffer(4096)
    assert [world.engine.free_managed_buffer(address, 4096) for _ in range(2)] == [0, -3]


@case()
def bytes_of_any_memory(world: World) -> None:
    memory = world.memory(1000, pattern(1000), registered=False)
    assert world.engine.read_bytes_from_buffer(memory.address + 10, 20) == pattern(1000)[10:30]
    assert world.engine.write_bytes_to_buffer(memory.address, "abcdef", 3) == 0
    assert memory.content[:4] == b"abc" + pattern(1000)[3:4]


@case(differs=LONGER)
def write_more_bytes_than_there_are(world: World) -> None:
    memory = world.memory(100, registered=False)
    assert world.engine.write_bytes_to_buffer(memory.address, "abc", 10) == -1


@case(differs=NO_READ)
def read_no_memory(world: World) -> None:
    assert world.engine.read_bytes_from_buffer(4096, 10) == b""
