"""Parts of objects, sessions, and objects that are replaced."""

from __future__ import annotations

from typing import Any

from .world import BEFORE_SETUP, MIB, NO_SUCH_NUMBER, World, case, pattern

UNWRITTEN = "a put session that did not write every byte"
POISON = b"\xa5"


@case()
def a_part_of_an_object(world: World) -> None:
    key, target = world.put(pattern(10_000)), world.memory(100)
    assert world.store.get_into_ranges([target.address], [[key]], [[[0]]], [[[5000]]], [[[100]]]) == [[[100]]]
    assert target.content == pattern(10_000)[5000:5100]


@case()
def parts_of_two_objects_in_two_buffers(world: World) -> None:
    one, two = world.put(pattern(100, 1)), world.put(pattern(100, 2))
    first, second = world.memory(32), world.memory(32)
    read = world.store.get_into_ranges(
        [first.address, second.address],
        [[one, two], [two, one]],
        [[[0, 20], [8]], [[4], [16]]],
        [[[1, 30], [2]], [[0], [10]]],
        [[[4, 3], [5]], [[6], [4]]],
    )
    assert read == [[[4, 3], [5]], [[6], [4]]]
    expected = bytearray(POISON * 32)
    expected[0:4], expected[20:23], expected[8:13] = pattern(100, 1)[1:5], pattern(100, 1)[30:33], pattern(100, 2)[2:7]
    assert first.content == expected
    expected = bytearray(POISON * 32)
    expected[4:10], expected[16:20] = pattern(100, 2)[0:6], pattern(100, 1)[10:14]
    assert second.content == expected


@case()
def parts_of_something_that_is_not_there(world: World) -> None:
    key, target = world.put(pattern(100)), world.memory(64)
    ((good,), (bad,)), *_ = world.store.get_into_ranges(
        [target.address], [[key, world.key()]], [[[0], [32]]], [[[0], [0]]], [[[32], [32]]]
    )
    assert good == 32
    assert bad < 0
    assert target.content == pattern(100)[:32] + POISON * 32


@case()
def parts_beyond_the_object(world: World) -> None:
    key, target = world.put(pattern(100)), world.memory(64)
    (((code,),),) = world.store.get_into_ranges([target.address], [[key]], [[[0]]], [[[90]]], [[[32]]])
    assert code < 0


@case()
def parts_beyond_the_buffer(world: World) -> None:
    key, target = world.put(pattern(100)), world.memory(64)
    (((code,),),) = world.store.get_into_ranges([target.address], [[key]], [[[50]]], [[[0]]], [[[32]]])
    assert code < 0


@case(1, 3)
def a_put_session_writes_layer_by_layer(world: World, count: int) -> None:
    layers, page = 4, 4096
    keys, source = world.keys(count), world.memory(count * layers * page, pattern(count * layers * page))
    assert list(world.store.batch_put_session_start(keys, [layers * page] * count)) == [0] * count
    assert list(world.store.batch_is_exist(keys)) == [0] * count
    for layer in range(layers):
        addresses = [[source.address + (index * layers + layer) * page] for index in range(count)]
        written = world.store.batch_put_from_multi_buffer_ranges(
            keys, addresses, [[page]] * count, [[layer * page]] * count
        )
        assert list(written) == [page] * count
    assert list(world.store.batch_put_session_end(keys)) == [0] * count
    assert b"".join(world.store.get_batch(keys)) == source.content


@case()
def a_put_session_in_any_order(world: World) -> None:
    key, source = world.key(), world.memory(3000, pattern(3000))
    assert list(world.store.batch_put_session_start([key], [3000])) == [0]
    for offset in (2000, 0, 1000):
        parts = [[source.address + offset]], [[1000]], [[offset]]
        assert list(world.store.batch_put_from_multi_buffer_ranges([key], *parts)) == [1000]
    assert list(world.store.batch_put_session_end([key])) == [0]
    assert world.reader.get(key) == pattern(3000)


@case()
def a_revoked_put_session_leaves_nothing(world: World) -> None:
    key = world.key()
    assert list(world.store.batch_put_session_start([key], [4096])) == [0]
    assert list(world.store.batch_put_session_revoke([key])) == [0]
    assert world.store.is_exist(key) == 0
    assert world.store.put(key, b"after it") == 0


@case()
def a_put_session_that_cannot_fit(world: World) -> None:
    (code,) = world.store.batch_put_session_start([world.key()], [256 * MIB])
    assert code == -200


@case(1 << 63, (1 << 64) - 1)
def a_put_session_of_more_than_there_can_be(world: World, size: int) -> None:
    assert list(world.store.batch_put_session_start([world.key()], [size])) == [-200]


@case()
def a_put_session_of_an_empty_object_is_refused_alone(world: World) -> None:
    empty, full = world.keys(2)
    assert list(world.store.batch_put_session_start([empty, full], [0, 10])) == [-600, 0]
    assert list(world.store.batch_put_session_end([empty])) == [-600]
    assert list(world.store.batch_put_session_revoke([full])) == [0]


@case(-1, 1 << 64, differs=NO_SUCH_NUMBER)
def a_put_session_of_no_size_is_refused_alone(world: World, size: int) -> None:
    wrong, full = world.keys(2)
    assert list(world.store.batch_put_session_start([wrong, full], [size, 10])) == [-600, 0]
    assert list(world.store.batch_put_session_revoke([full])) == [0]


@case()
def a_put_session_wants_a_group_per_key(world: World) -> None:
    config = world.Config()
    config.group_ids = ["group"]
    assert list(world.store.batch_put_session_start(world.keys(2), [10, 10], config)) == [-600, -600]
    config.group_ids = []
    assert list(world.store.batch_put_session_start(world.keys(2), [10, 10], config)) == [-600, -600]


@case()
def a_put_session_wants_a_size_per_key(world: World) -> None:
    assert list(world.store.batch_put_session_start(world.keys(2), [4096])) == [-600, -600]


@case()
def a_put_session_of_the_same_key_twice(world: World) -> None:
    key = world.key()
    assert list(world.store.batch_put_session_start([key, key], [10, 10])) == [0, -705]
    assert list(world.store.batch_put_session_start([key], [10])) == [-600]
    assert list(world.store.batch_put_session_revoke([key])) == [0]
    assert list(world.store.batch_put_session_revoke([key])) == [-600]


@case()
def a_put_session_of_what_is_there(world: World) -> None:
    assert list(world.store.batch_put_session_start([world.put()], [10])) == [-705]


@case(differs=UNWRITTEN)
def a_put_session_that_did_not_write_everything(world: World) -> None:
    key, source = world.key(), world.memory(10)
    assert list(world.store.batch_put_session_start([key], [20])) == [0]
    assert list(world.store.batch_put_from_multi_buffer_ranges([key], [[source.address]], [[10]], [[0]])) == [10]
    assert list(world.store.batch_put_session_end([key])) == [-800]
    assert world.store.is_exist(key) == 0


@case()
def reading_without_a_get_session(world: World) -> None:
    key, target = world.put(), world.memory(10)
    assert list(world.store.batch_get_into_multi_buffer_ranges([key], [[target.address]], [[10]], [[0]])) == [-600]


@case()
def writing_without_a_put_session(world: World) -> None:
    source = world.memory(100)
    (code,) = world.store.batch_put_from_multi_buffer_ranges([world.key()], [[source.address]], [[100]], [[0]])
    assert code < 0


@case()
def ending_a_put_session_that_is_none(world: World) -> None:
    (code,) = world.store.batch_put_session_end([world.key()])
    assert code < 0


@case()
def a_get_session_reads_parts(world: World) -> None:
    keys, target = [world.put(pattern(8192, 1)), world.put(pattern(8192, 2))], world.memory(8192)
    assert list(world.store.batch_get_session_start(keys)) == [0, 0]
    read = world.store.batch_get_into_multi_buffer_ranges(
        keys,
        [[target.address, target.address + 2048], [target.address + 4096]],
        [[2048, 2048], [4096]],
        [[0, 6144], [1024]],
    )
    assert list(read) == [4096, 4096]
    assert target.content[:2048] == pattern(8192, 1)[:2048]
    assert target.content[2048:4096] == pattern(8192, 1)[6144:]
    assert target.content[4096:] == pattern(8192, 2)[1024:5120]
    assert world.store.batch_get_session_end(keys) == 0


@case()
def a_get_session_reads_the_same_object_twice_in_one_call(world: World) -> None:
    key, target = world.put(pattern(200)), world.memory(100)
    assert list(world.store.batch_get_session_start([key])) == [0]
    room = [[target.address], [target.address + 50]]
    read = world.store.batch_get_into_multi_buffer_ranges([key, key], room, [[50], [50]], [[0], [100]])
    assert list(read) == [50, 50]
    assert target.content == pattern(200)[:50] + pattern(200)[100:150]
    assert world.store.batch_get_session_end([key]) == 0


@case()
def a_get_session_of_something_that_is_not_there(world: World) -> None:
    keys = [world.put(), world.key()]
    there, absent = world.store.batch_get_session_start(keys)
    assert there == 0
    assert absent < 0
    assert world.store.batch_get_session_end(keys[:1]) == 0


@case()
def reading_beyond_an_object_of_a_get_session(world: World) -> None:
    key, target = world.put(pattern(100)), world.memory(100)
    assert list(world.store.batch_get_session_start([key])) == [0]
    (code,) = world.store.batch_get_into_multi_buffer_ranges([key], [[target.address]], [[100]], [[1]])
    assert code < 0
    world.store.batch_get_session_end([key])


@case(("same size", b"old bytes", b"new bytes"), ("longer", b"old", b"new, and longer"), ("shorter", b"older", b"new"))
def upsert_replaces(world: World, _: str, old: bytes, new: bytes) -> None:
    key = world.put(old)
    assert world.store.upsert(key, new) == 0
    assert world.reader.get(key) == new
    assert world.store.get_size(key) == len(new)


@case()
def upsert_of_something_new(world: World) -> None:
    key = world.key()
    assert world.store.upsert(key, b"value") == 0
    assert world.store.get(key) == b"value"


@case()
def upsert_from_memory(world: World) -> None:
    key, source = world.put(b"old"), world.memory(5000, pattern(5000))
    assert world.store.upsert_from(key, source.address, 5000) == 0
    assert world.store.get(key) == pattern(5000)


@case()
def batch_upsert_from_memory(world: World) -> None:
    keys, source = [world.put(b"old"), world.key()], world.memory(2000, pattern(2000))
    addresses = [source.address, source.address + 1000]
    assert list(world.store.batch_upsert_from(keys, addresses, [1000, 1000])) == [0, 0]
    assert b"".join(world.store.get_batch(keys)) == pattern(2000)


@case()
def upsert_parts_and_batches(world: World) -> None:
    keys = [world.put(b"old"), world.key()]
    assert world.store.upsert_parts(keys[0], b"new", b" parts") == 0
    assert world.store.upsert_batch(keys, [b"newer", b"new"]) == 0
    assert world.store.get_batch(keys) == [b"newer", b"new"]


@case(
    ("batch_put_session_start", lambda store: list(store.batch_put_session_start(["key"], [8]))),
    ("batch_get_session_start", lambda store: list(store.batch_get_session_start(["key"]))),
    differs=BEFORE_SETUP,
)
def parts_before_setup(world: World, _: str, call: Any) -> None:
    assert call(world.Store())[0] < 0


@case()
def upsert_before_setup(world: World) -> None:
    assert world.Store().upsert("key", b"value") < 0
