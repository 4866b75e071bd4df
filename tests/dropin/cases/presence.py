"""What is there, and how it goes."""

from __future__ import annotations

from typing import Any

from .world import NO_SUCH_NUMBER, World, case, pattern, raises

PROBES = "`is_exist`, `get_size`, `get_replica_desc`"


@case()
def is_exist_of_an_object(world: World) -> None:
    key = world.put()
    assert (world.store.is_exist(key), world.reader.is_exist(key)) == (1, 1)


@case()
def is_exist_of_nothing(world: World) -> None:
    assert world.store.is_exist(world.key()) == 0


@case(7, None)
def is_exist_wants_a_str(world: World, key: Any) -> None:
    raises(TypeError, lambda: world.store.is_exist(key))


@case(
    ("put", lambda store, key: store.put(key, b"value"), -600),
    ("get", lambda store, key: store.get(key), b""),
    ("is_exist", lambda store, key: store.is_exist(key), -600),
    ("batch_is_exist", lambda store, key: list(store.batch_is_exist([key])), [-600]),
    ("get_size", lambda store, key: store.get_size(key), -600),
    ("remove", lambda store, key: store.remove(key), -600),
    ("remove_by_regex", lambda store, key: store.remove_by_regex(key), -600),
    ("get_replica_desc", lambda store, key: list(store.get_replica_desc(key)), []),
    ("batch_get_session_start", lambda store, key: list(store.batch_get_session_start([key])), [-600]),
    differs=NO_SUCH_NUMBER,
)
def a_key_that_is_no_text(world: World, _: str, call: Any, answer: Any) -> None:
    assert call(world.store, "\ud800") == answer
    assert world.store.get(world.put()) == b"some bytes"


@case(1, 10, 1000)
def batch_is_exist_of_every_second(world: World, count: int) -> None:
    keys = world.keys(2 * count)
    assert world.store.put_batch(keys[::2], [b"value"] * count) == 0
    assert list(world.reader.batch_is_exist(keys)) == [1, 0] * count


@case()
def batch_is_exist_of_no_keys(world: World) -> None:
    assert list(world.store.batch_is_exist([])) == []


@case()
def batch_is_exist_of_the_same_key_twice(world: World) -> None:
    key = world.put()
    assert list(world.store.batch_is_exist([key, key])) == [1, 1]


@case()
def batch_is_exist_wants_strs(world: World) -> None:
    raises(TypeError, lambda: world.store.batch_is_exist([world.key(), 7]))


@case()
def remove_an_object(world: World) -> None:
    key = world.put()
    assert world.store.remove(key) == 0
    assert (world.store.is_exist(key), world.store.get(key)) == (0, b"")


@case()
def remove_by_another_store(world: World) -> None:
    key = world.put()
    assert world.reader.remove(key) == 0
    assert world.store.is_exist(key) == 0


@case()
def remove_of_nothing(world: World) -> None:
    assert world.store.remove(world.key()) == -704


@case()
def remove_twice(world: World) -> None:
    key = world.put()
    assert (world.store.remove(key), world.store.remove(key)) == (0, -704)


@case()
def remove_of_what_was_just_read(world: World) -> None:
    key = world.put()
    assert world.store.get(key)
    assert world.store.remove(key) == -706
    assert world.store.get(key) == b"some bytes"


@case(
    ("is_exist", lambda store, key: store.is_exist(key)),
    ("get_size", lambda store, key: store.get_size(key)),
    ("get_replica_desc", lambda store, key: store.get_replica_desc(key)),
    differs=PROBES,
)
def remove_of_what_was_only_looked_at(world: World, _: str, look: Any) -> None:
    key = world.put()
    assert look(world.store, key)
    assert world.store.remove(key) == 0


@case()
def remove_by_force_of_what_was_just_read(world: World) -> None:
    key = world.put()
    assert world.store.get(key)
    assert world.store.remove(key, True) == 0
    assert world.store.is_exist(key) == 0


@case()
def force_is_a_keyword_too(world: World) -> None:
    key = world.put()
    assert world.store.get(key)
    assert world.store.remove(key, force=True) == 0


@case()
def a_removed_key_takes_a_new_value(world: World) -> None:
    key = world.put(b"old")
    assert world.store.remove(key) == 0
    assert world.store.put(key, b"new, and of another size") == 0
    assert world.reader.get(key) == b"new, and of another size"


@case()
def batch_remove_of_some(world: World) -> None:
    keys = [world.put(), world.key(), world.put()]
    assert list(world.store.batch_remove(keys)) == [0, -704, 0]
    assert list(world.store.batch_is_exist(keys)) == [0, 0, 0]


@case()
def batch_remove_of_leased_ones(world: World) -> None:
    leased, other = world.put(), world.put()
    assert world.store.get(leased)
    assert list(world.store.batch_remove([leased, other])) == [-706, 0]


@case()
def batch_remove_by_force(world: World) -> None:
    keys = [world.put(), world.put()]
    assert world.store.get_batch(keys)
    assert list(world.store.batch_remove(keys, True)) == [0, 0]


@case()
def batch_remove_of_no_keys(world: World) -> None:
    assert list(world.store.batch_remove([])) == []


@case(1, 25)
def remove_all_says_how_many(world: World, count: int) -> None:
    for _ in range(count):
        world.put()
    assert world.store.remove_all() == count


@case()
def remove_all_of_an_empty_pool(world: World) -> None:
    assert world.store.remove_all() == 0


@case()
def remove_all_leaves_leased_ones(world: World) -> None:
    leased, _ = world.put(), world.put()
    assert world.store.get(leased)
    assert world.store.remove_all() == 1
    assert world.store.is_exist(leased) == 1


@case()
def remove_all_by_force(world: World) -> None:
    keys = [world.put(), world.put()]
    assert world.store.get_batch(keys)
    assert world.store.remove_all(force=True) == 2
    assert list(world.store.batch_is_exist(keys)) == [0, 0]


@case((r"^regex-a", 2), (r"regex-", 3), (r"-\d$", 3), (r"^nothing like it$", 0), (r"regex-(a|b)-1", 2))
def remove_by_regex(world: World, expression: str, count: int) -> None:
    for key in ("regex-a-1", "regex-a-2", "regex-b-1", "other"):
        assert world.store.put(key, b"value") == 0
    assert world.store.remove_by_regex(expression) == count
    assert sum(world.store.batch_is_exist(["regex-a-1", "regex-a-2", "regex-b-1", "other"])) == 4 - count


@case()
def remove_by_regex_leaves_leased_ones(world: World) -> None:
    leased, other = world.put(), world.put()
    assert world.store.get(leased)
    assert world.store.remove_by_regex("case-") == 1
    assert (world.store.is_exist(leased), world.store.is_exist(other)) == (1, 0)


@case()
def remove_by_regex_by_force(world: World) -> None:
    keys = [world.put(), world.put()]
    assert world.store.get_batch(keys)
    assert world.store.remove_by_regex("case-", True) == 2


@case()
def remove_by_something_that_is_no_regex(world: World) -> None:
    assert world.store.remove_by_regex("(unclosed") < 0


@case()
def replicas_of_an_object(world: World) -> None:
    key = world.put(pattern(5000))
    (replica,) = world.store.get_replica_desc(key)
    assert replica.is_memory_replica()
    assert not replica.is_disk_replica()
    assert not replica.is_local_disk_replica()


@case()
def a_memory_replica_has_a_place(world: World) -> None:
    (replica,) = world.store.get_replica_desc(world.put(pattern(5000)))
    place = replica.get_memory_descriptor().buffer_descriptor
    assert place.size == 5000
    assert place.transport_endpoint
    assert isinstance(place.buffer_address, int)


@case()
def a_complete_replica_says_so(world: World) -> None:
    (replica,) = world.store.get_replica_desc(world.put())
    assert replica.status.name == "COMPLETE"


@case()
def replicas_of_nothing(world: World) -> None:
    assert list(world.store.get_replica_desc(world.key())) == []


@case()
def replicas_of_several(world: World) -> None:
    there, absent = world.put(), world.key()
    found = world.store.batch_get_replica_desc([there, absent])
    assert [replica.is_memory_replica() for replica in found[there]] == [True]
    assert not found.get(absent)
