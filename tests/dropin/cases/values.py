"""Objects as Python values."""

from __future__ import annotations

import array
import ctypes
from typing import Any

from .world import MIB, TOO_LARGE, World, case, pattern, raises

LONG_KEYS = "keys of more than 1024 bytes"
NO_PARTS = "`put_parts` of no parts, `put_from` of no bytes"
NO_KEYS = "`get_batch` of no keys"
SIZES = [1, 7, 63, 64, 65, 4095, 4096, 4097, 65_536, MIB, 5 * MIB + 3]


@case(*SIZES)
def put_and_get(world: World, size: int) -> None:
    key, value = world.key(), pattern(size, seed=size)
    assert world.store.put(key, value) == 0
    assert world.store.get(key) == value
    assert world.reader.get(key) == value


@case(
    ("bytes", lambda value: value),
    ("bytearray", bytearray),
    ("memoryview", memoryview),
    ("array", lambda value: array.array("B", value)),
    ("ctypes", lambda value: (ctypes.c_char * len(value)).from_buffer_copy(value)),
)
def put_takes_buffers(world: World, _: str, made: Any) -> None:
    key, value = world.key(), pattern(1000)
    assert world.store.put(key, made(value)) == 0
    assert world.store.get(key) == value


@case()
def get_answers_bytes(world: World) -> None:
    assert type(world.store.get(world.put())) is bytes


@case()
def get_of_nothing_is_empty(world: World) -> None:
    assert world.store.get(world.key()) == b""


@case()
def get_again_is_the_same(world: World) -> None:
    key = world.put(pattern(5000))
    assert [world.reader.get(key) for _ in range(5)] == [pattern(5000)] * 5


@case()
def put_again_keeps_the_first(world: World) -> None:
    key = world.put(b"first")
    assert world.store.put(key, b"second, and longer") == 0
    assert world.store.get(key) == b"first"


@case()
def put_again_by_another_store_keeps_the_first(world: World) -> None:
    key = world.put(b"first")
    assert world.reader.put(key, b"second") == 0
    assert world.store.get(key) == b"first"


@case()
def a_store_without_a_segment_can_put(world: World) -> None:
    key = world.key()
    assert world.reader.put(key, pattern(70_000)) == 0
    assert world.store.get(key) == pattern(70_000)


@case()
def put_of_nothing(world: World) -> None:
    key = world.key()
    assert world.store.put(key, b"") == -600
    assert world.store.is_exist(key) == 0


@case(differs=NO_PARTS)
def put_parts_of_nothing(world: World) -> None:
    assert world.store.put_parts(world.key()) == -600


@case()
def a_key_of_bytes_is_that_of_its_text(world: World) -> None:
    key = world.key()
    assert world.store.put(key.encode(), b"value") == 0
    assert world.store.get(key) == b"value"


@case()
def an_empty_key(world: World) -> None:
    assert world.store.put("", b"value") == -600
    assert world.store.is_exist("") == 0
    assert world.store.get("") == b""
    assert world.store.remove("") == -704


@case(differs=LONG_KEYS)
def a_key_of_5000_characters(world: World) -> None:
    assert world.store.put("k" * 5000, b"value") == -600


@case()
def put_that_cannot_fit(world: World) -> None:
    key = world.key()
    assert world.store.put(key, bytes(TOO_LARGE)) == -200
    assert world.store.is_exist(key) == 0


@case()
def after_one_that_cannot_fit_others_do(world: World) -> None:
    world.store.put(world.key(), bytes(TOO_LARGE))
    assert world.store.get(world.put(pattern(1000))) == pattern(1000)


@case(
    "a",
    "with space",
    "slash/es/and:colons@ats",
    "ünïcødé-键",
    "new\nline",
    "tab\tand\rreturn",
    "demo@tp_rank:0@pcp0@dcp0@pp_rank:0@group:0@00ff",
    "0123456789abcdef_0_0_k",
    "k" * 255,
    "k" * 1024,
    "%s{}\\",
    "../../etc/passwd",
)
def keys_of_all_kinds(world: World, key: str) -> None:
    assert world.store.put(key, key.encode()) == 0
    assert world.store.is_exist(key) == 1
    assert world.reader.get(key) == key.encode()
    assert world.store.get_size(key) == len(key.encode())


@case()
def keys_differ_by_case(world: World) -> None:
    key = world.key()
    assert world.store.put(key + "a", b"small") == 0
    assert world.store.put(key + "A", b"LARGE") == 0
    assert (world.store.get(key + "a"), world.store.get(key + "A")) == (b"small", b"LARGE")


@case()
def a_key_is_no_prefix_of_another(world: World) -> None:
    key = world.put()
    assert world.store.is_exist(key[:-1]) == 0
    assert world.store.is_exist(key + "x") == 0


@case(7, None, ["list"])
def put_wants_a_str_as_key(world: World, key: Any) -> None:
    raises(TypeError, lambda: world.store.put(key, b"value"))


@case(7, None, ["list"])
def put_wants_a_buffer_as_value(world: World, value: Any) -> None:
    raises(TypeError, lambda: world.store.put(world.key(), value))


@case(7, None, ["list"])
def get_wants_a_str_as_key(world: World, key: Any) -> None:
    raises(TypeError, lambda: world.store.get(key))


@case((1,), (2,), (5,), (40,))
def put_parts_makes_one_object(world: World, count: int) -> None:
    key, parts = world.key(), [pattern(100 + number, seed=number) for number in range(count)]
    assert world.store.put_parts(key, *parts) == 0
    assert world.store.get(key) == b"".join(parts)


@case()
def put_parts_of_different_buffers(world: World) -> None:
    key = world.key()
    assert world.store.put_parts(key, b"ab", bytearray(b"cd"), memoryview(b"ef")) == 0
    assert world.store.get(key) == b"abcdef"


@case()
def put_parts_with_a_config(world: World) -> None:
    key, config = world.key(), world.Config()
    config.replica_num = 1
    assert world.store.put_parts(key, b"ab", b"cd", config=config) == 0
    assert world.store.get(key) == b"abcd"


@case()
def put_parts_of_large_parts(world: World) -> None:
    key = world.key()
    assert world.store.put_parts(key, pattern(MIB, 1), pattern(2 * MIB, 2)) == 0
    assert world.reader.get(key) == pattern(MIB, 1) + pattern(2 * MIB, 2)


@case()
def put_parts_wants_buffers(world: World) -> None:
    raises(TypeError, lambda: world.store.put_parts(world.key(), b"good", 7))


@case(1, 10, 100)
def put_batch_and_get_batch(world: World, count: int) -> None:
    keys, values = world.keys(count), [pattern(50 + 13 * number, seed=number) for number in range(count)]
    assert world.store.put_batch(keys, values) == 0
    assert world.reader.get_batch(keys) == values


@case()
def put_batch_skips_what_is_there(world: World) -> None:
    keys = world.keys(3)
    assert world.store.put(keys[1], b"first") == 0
    assert world.store.put_batch(keys, [b"0", b"1", b"2"]) == 0
    assert world.store.get_batch(keys) == [b"0", b"first", b"2"]


@case()
def put_batch_wants_a_value_per_key(world: World) -> None:
    assert world.store.put_batch(world.keys(2), [b"only one"]) == -600


@case()
def put_batch_of_nothing(world: World) -> None:
    assert world.store.put_batch([], []) == 0


@case()
def put_batch_that_cannot_fit_fails(world: World) -> None:
    assert world.store.put_batch([world.key()], [bytes(TOO_LARGE)]) == -200


@case()
def put_batch_with_a_config(world: World) -> None:
    keys = world.keys(2)
    assert world.store.put_batch(keys, [b"a", b"b"], world.Config()) == 0
    assert world.store.get_batch(keys) == [b"a", b"b"]


@case(differs=NO_KEYS)
def get_batch_of_nothing(world: World) -> None:
    assert world.store.get_batch([]) == []


@case()
def get_batch_of_what_is_not_there(world: World) -> None:
    assert world.store.get_batch(world.keys(3)) == [b"", b"", b""]


@case()
def get_batch_of_some_that_are_there(world: World) -> None:
    keys = [world.put(b"one"), world.key(), world.put(b"three")]
    assert world.store.get_batch(keys) == [b"one", b"", b"three"]


@case()
def get_batch_of_the_same_key_twice(world: World) -> None:
    key = world.put(b"once")
    assert world.store.get_batch([key, key]) == [b"once", b"once"]


@case(1, 4096, MIB)
def get_buffer_has_the_bytes(world: World, size: int) -> None:
    handle = world.store.get_buffer(world.put(pattern(size)))
    assert handle.size() == size
    assert bytes(memoryview(handle)) == pattern(size)
    assert ctypes.string_at(handle.ptr(), size) == pattern(size)


@case()
def get_buffer_outlives_the_object(world: World) -> None:
    key = world.put(pattern(5000))
    handle = world.store.get_buffer(key)
    assert world.store.remove(key, True) == 0
    assert bytes(memoryview(handle)) == pattern(5000)


@case()
def get_buffer_of_nothing(world: World) -> None:
    assert world.store.get_buffer(world.key()) is None


@case()
def batch_get_buffer_of_some(world: World) -> None:
    keys = [world.put(b"one"), world.key(), world.put(b"three")]
    one, none, three = world.store.batch_get_buffer(keys)
    assert (bytes(memoryview(one)), none, bytes(memoryview(three))) == (b"one", None, b"three")


@case()
def batch_get_buffer_of_nothing(world: World) -> None:
    assert world.store.batch_get_buffer([]) == []


@case(*SIZES[::2])
def get_size_is_the_size(world: World, size: int) -> None:
    assert world.reader.get_size(world.put(pattern(size))) == size


@case()
def get_size_of_nothing(world: World) -> None:
    assert world.store.get_size(world.key()) == -704
