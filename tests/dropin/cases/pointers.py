"""Objects out of, and into, memory that is named by its address."""

from __future__ import annotations

from typing import Any

from .world import MIB, TOO_LARGE, Memory, World, case, pattern, raises

NO_BYTES = "`put_parts` of no parts, `put_from` of no bytes"
POISON = b"\xa5"


@case()
def register_and_unregister(world: World) -> None:
    memory = Memory(4096)
    assert world.store.register_buffer(memory.address, memory.size) == 0
    assert world.store.unregister_buffer(memory.address) == 0


@case()
def register_after_unregister(world: World) -> None:
    memory = Memory(4096)
    for _ in range(3):
        assert world.store.register_buffer(memory.address, memory.size) == 0
        assert world.store.unregister_buffer(memory.address) == 0


@case()
def register_twice(world: World) -> None:
    memory = world.memory(4096)
    assert world.store.register_buffer(memory.address, memory.size) < 0


@case()
def register_nothing(world: World) -> None:
    assert world.store.register_buffer(Memory(10).address, 0) < 0


@case()
def unregister_what_is_not(world: World) -> None:
    assert world.store.unregister_buffer(Memory(4096).address) < 0


@case()
def unregister_twice(world: World) -> None:
    memory = Memory(4096)
    assert world.store.register_buffer(memory.address, memory.size) == 0
    assert world.store.unregister_buffer(memory.address) == 0
    assert world.store.unregister_buffer(memory.address) < 0


@case()
def register_wants_numbers(world: World) -> None:
    raises(TypeError, lambda: world.store.register_buffer("address", 10))


@case(1, 100, 4096, 65_537, MIB, 5 * MIB)
def put_from_and_get_into(world: World, size: int) -> None:
    key, source = world.key(), world.memory(size, pattern(size))
    target = world.memory(size, store=world.reader)
    assert world.store.put_from(key, source.address, size) == 0
    assert world.reader.get_into(key, target.address, size) == size
    assert target.content == pattern(size)


@case()
def put_from_the_middle(world: World) -> None:
    key, source = world.key(), world.memory(10_000, pattern(10_000))
    assert world.store.put_from(key, source.address + 1000, 500) == 0
    assert world.store.get(key) == pattern(10_000)[1000:1500]


@case()
def put_from_keeps_the_first(world: World) -> None:
    key, source = world.put(b"first"), world.memory(100, pattern(100))
    assert world.store.put_from(key, source.address, 100) == 0
    assert world.store.get(key) == b"first"


@case()
def put_from_does_not_hold_on_to_the_memory(world: World) -> None:
    key, source = world.key(), world.memory(100_000, pattern(100_000))
    assert world.store.put_from(key, source.address, 100_000) == 0
    source.fill(bytes(100_000))
    assert world.store.get(key) == pattern(100_000)


@case()
def put_from_unregistered_memory(world: World) -> None:
    key, memory = world.key(), Memory(4096, pattern(4096))
    assert world.store.put_from(key, memory.address, memory.size) == 0
    assert world.store.get(key) == pattern(4096)


@case(differs=NO_BYTES)
def put_from_of_nothing(world: World) -> None:
    key = world.key()
    assert world.store.put_from(key, world.memory(100).address, 0) == -600
    assert world.store.is_exist(key) == 0


@case()
def put_from_more_than_can_fit(world: World) -> None:
    source = world.memory(TOO_LARGE)
    assert world.store.put_from(world.key(), source.address, source.size) == -200


@case()
def put_from_with_a_config(world: World) -> None:
    key, source = world.key(), world.memory(100, pattern(100))
    assert world.store.put_from(key, source.address, 100, world.Config()) == 0
    assert world.store.get(key) == pattern(100)


@case()
def get_into_more_room(world: World) -> None:
    key, target = world.put(pattern(1000)), world.memory(4096)
    assert world.store.get_into(key, target.address, 4096) == 1000
    assert target.content[:1000] == pattern(1000)
    assert target.content[1000:] == POISON * 3096


@case()
def get_into_less_room(world: World) -> None:
    key, target = world.put(pattern(1000)), world.memory(4096)
    assert world.store.get_into(key, target.address, 999) < 0
    assert target.content[999:] == POISON * 3097


@case()
def get_into_of_nothing(world: World) -> None:
    target = world.memory(4096)
    assert world.store.get_into(world.key(), target.address, 4096) == -704
    assert target.content == POISON * 4096


@case()
def get_into_unregistered_memory(world: World) -> None:
    target = Memory(4096)
    assert world.store.get_into(world.put(pattern(1000)), target.address, 4096) == 1000
    assert target.content == pattern(1000) + POISON * 3096


@case()
def get_into_no_room(world: World) -> None:
    assert world.store.get_into(world.put(pattern(1000)), world.memory(100).address, 0) == -600


@case()
def batch_put_from_the_same_key_twice(world: World) -> None:
    key, source = world.key(), world.memory(20, pattern(20))
    addresses = [source.address, source.address + 10]
    assert list(world.store.batch_put_from([key, key], addresses, [10, 10])) == [0, 0]
    assert world.store.get(key) in (pattern(20)[:10], pattern(20)[10:])


@case()
def get_into_the_middle(world: World) -> None:
    key, target = world.put(pattern(1000)), world.memory(4096)
    assert world.store.get_into(key, target.address + 1024, 1000) == 1000
    assert target.content == POISON * 1024 + pattern(1000) + POISON * 2072


@case(1, 16, 64)
def batch_put_from_and_get_into(world: World, count: int) -> None:
    keys, size = world.keys(count), 3000
    source = world.memory(count * size, pattern(count * size))
    target = world.memory(count * size, store=world.reader)
    offsets = [index * size for index in range(count)]
    sizes = [size] * count
    assert list(world.store.batch_put_from(keys, [source.address + at for at in offsets], sizes)) == [0] * count
    assert list(world.reader.batch_get_into(keys, [target.address + at for at in offsets], sizes)) == sizes
    assert target.content == source.content


@case()
def batch_put_from_different_sizes(world: World) -> None:
    sizes = [1, 4096, 65_536, MIB]
    keys, sources = world.keys(4), [world.memory(size, pattern(size, seed=size)) for size in sizes]
    assert list(world.store.batch_put_from(keys, [source.address for source in sources], sizes)) == [0] * 4
    assert world.store.get_batch(keys) == [source.content for source in sources]


@case()
def batch_put_from_some_that_are_there(world: World) -> None:
    keys, source = [world.key(), world.put(b"first")], world.memory(100, pattern(100))
    assert list(world.store.batch_put_from(keys, [source.address] * 2, [100] * 2)) == [0, 0]
    assert world.store.get_batch(keys) == [pattern(100), b"first"]


@case(([], [10, 10]), ([1, 2, 3], [10, 10]), ([1, 2], [10]))
def batch_put_from_wants_lists_of_a_length(world: World, addresses: Any, sizes: Any) -> None:
    codes = list(world.store.batch_put_from(world.keys(2), addresses, sizes))
    assert codes == [-600, -600]


@case()
def batch_put_from_no_keys(world: World) -> None:
    assert list(world.store.batch_put_from([], [], [])) == []


@case()
def batch_put_from_where_one_cannot_fit(world: World) -> None:
    keys, source = world.keys(2), world.memory(TOO_LARGE)
    codes = list(world.store.batch_put_from(keys, [source.address] * 2, [TOO_LARGE, 1000]))
    assert codes == [-200, 0]
    assert list(world.store.batch_is_exist(keys)) == [0, 1]


@case()
def batch_get_into_of_some_that_are_there(world: World) -> None:
    keys = [world.put(b"one"), world.key(), world.put(b"three")]
    target = world.memory(300)
    addresses = [target.address + at for at in (0, 100, 200)]
    assert list(world.store.batch_get_into(keys, addresses, [100] * 3)) == [3, -704, 5]
    assert target.content[:3] == b"one"
    assert target.content[100:200] == POISON * 100
    assert target.content[200:205] == b"three"


@case()
def batch_get_into_where_one_has_no_room(world: World) -> None:
    keys, target = [world.put(pattern(100)), world.put(pattern(100))], world.memory(200)
    small, good = world.store.batch_get_into(keys, [target.address, target.address + 100], [99, 100])
    assert small < 0
    assert good == 100
    assert target.content[100:] == pattern(100)


@case(([], [10, 10]), ([1, 2, 3], [10, 10]), ([1, 2], [10]))
def batch_get_into_wants_lists_of_a_length(world: World, addresses: Any, sizes: Any) -> None:
    codes = list(world.store.batch_get_into([world.put(), world.put()], addresses, sizes))
    assert codes == [-600, -600]


@case()
def batch_get_into_of_no_keys(world: World) -> None:
    assert list(world.store.batch_get_into([], [], [])) == []


@case(1, 2, 5, 40)
def multi_buffers_make_one_object(world: World, count: int) -> None:
    key, sizes = world.key(), [100 + 50 * number for number in range(count)]
    sources = [world.memory(size, pattern(size, seed=size)) for size in sizes]
    whole = b"".join(source.content for source in sources)
    assert list(world.store.batch_put_from_multi_buffers([key], [[m.address for m in sources]], [sizes])) == [0]
    assert world.store.get(key) == whole
    targets = [world.memory(size, store=world.reader) for size in sizes]
    addresses = [[target.address for target in targets]]
    assert list(world.reader.batch_get_into_multi_buffers([key], addresses, [sizes])) == [len(whole)]
    assert b"".join(target.content for target in targets) == whole


@case()
def multi_buffers_for_several_keys(world: World) -> None:
    keys, source = world.keys(3), world.memory(6000, pattern(6000))
    halves = [[source.address + 2000 * index, source.address + 2000 * index + 500] for index in range(3)]
    sizes = [[500, 1500]] * 3
    assert list(world.store.batch_put_from_multi_buffers(keys, halves, sizes)) == [0] * 3
    assert b"".join(world.store.get_batch(keys)) == source.content


@case()
def multi_buffers_cut_differently(world: World) -> None:
    key, source, target = world.key(), world.memory(1000, pattern(1000)), world.memory(1000)
    parts = [[source.address, source.address + 300]]
    assert list(world.store.batch_put_from_multi_buffers([key], parts, [[300, 700]])) == [0]
    room = [[target.address, target.address + 600]]
    assert list(world.store.batch_get_into_multi_buffers([key], room, [[600, 400]])) == [1000]
    assert target.content == pattern(1000)


@case()
def multi_buffers_with_a_config(world: World) -> None:
    key, source = world.key(), world.memory(1000, pattern(1000))
    parts = [[source.address, source.address + 500]]
    config = world.Config()
    config.preferred_segment = world.store.get_hostname()
    assert list(world.store.batch_put_from_multi_buffers([key], parts, [[500, 500]], config)) == [0]
    assert world.store.get(key) == pattern(1000)


@case()
def multi_buffers_of_nothing(world: World) -> None:
    target = world.memory(100)
    assert list(world.store.batch_get_into_multi_buffers([world.key()], [[target.address]], [[100]])) == [-704]


@case()
def multi_buffers_of_some_that_are_there(world: World) -> None:
    keys, target = [world.put(pattern(100)), world.key()], world.memory(200)
    room = [[target.address, target.address + 50], [target.address + 100]]
    assert list(world.store.batch_get_into_multi_buffers(keys, room, [[50, 50], [100]])) == [100, -704]
    assert target.content == pattern(100) + POISON * 100


@case()
def multi_buffers_with_too_little_room(world: World) -> None:
    key, target = world.put(pattern(1000)), world.memory(1000)
    room = [[target.address, target.address + 400]]
    (code,) = world.store.batch_get_into_multi_buffers([key], room, [[400, 500]])
    assert code < 0


@case()
def multi_buffers_of_no_keys(world: World) -> None:
    assert list(world.store.batch_put_from_multi_buffers([], [], [])) == []
    assert list(world.store.batch_get_into_multi_buffers([], [], [])) == []


@case()
def multi_buffers_want_lists_of_a_length(world: World) -> None:
    source = world.memory(100)
    assert list(world.store.batch_put_from_multi_buffers(world.keys(2), [[source.address]], [[100]])) == [-600, -600]


@case()
def multi_buffers_skip_what_is_there(world: World) -> None:
    key, source = world.put(b"first"), world.memory(100)
    assert list(world.store.batch_put_from_multi_buffers([key], [[source.address]], [[100]])) == [0]
    assert world.store.get(key) == b"first"


@case()
def metadata_stands_before_the_data(world: World) -> None:
    key, data, metadata = world.key(), world.memory(1000, pattern(1000)), world.memory(40, b"m" * 40)
    assert world.store.put_from_with_metadata(key, data.address, metadata.address, 1000, 40) == 0
    assert world.store.get(key) == b"m" * 40 + pattern(1000)
