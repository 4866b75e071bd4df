"""Setting up, configuring, ending."""

from __future__ import annotations

import socket
from typing import Any

from .world import BEFORE_SETUP, MIB, NO_SUCH_NUMBER, Memory, World, case, pattern, raises


@case()
def setup_by_keywords(world: World) -> None:
    store = world.Store()
    code = store.setup(
        local_hostname="127.0.0.1",
        metadata_server="P2PHANDSHAKE",
        global_segment_size=0,
        local_buffer_size=16 * MIB,
        protocol="tcp",
        rdma_devices="",
        master_server_addr=world.master,
    )
    assert code == 0
    assert store.get(world.put()) == b"some bytes"
    assert store.close() == 0


@case()
def setup_by_a_dictionary(world: World) -> None:
    store = world.Store()
    code = store.setup(
        {
            "local_hostname": "127.0.0.1",
            "metadata_server": "P2PHANDSHAKE",
            "global_segment_size": "0",
            "local_buffer_size": "16777216",
            "protocol": "tcp",
            "rdma_devices": "",
            "master_server_addr": world.master,
        }
    )
    assert code == 0
    assert store.get(world.put()) == b"some bytes"
    assert store.close() == 0


@case()
def setup_passes_over_what_a_dictionary_has_beside(world: World) -> None:
    given = {"local_hostname": "127.0.0.1", "metadata_server": "P2PHANDSHAKE", "master_server_addr": world.master}
    store = world.Store()
    assert store.setup({**given, "global_segment_size": "0", "no_such_thing": "1"}) == 0
    assert store.close() == 0


@case()
def setup_names_what_it_does_not_know(world: World) -> None:
    text = raises(
        TypeError,
        lambda: world.Store().setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 * MIB, "tcp", "", world.master, no_such_thing=1),
    )
    assert "no_such_thing" in text


@case()
def setup_wants_numbers(world: World) -> None:
    raises(
        TypeError,
        lambda: world.Store().setup("127.0.0.1", "P2PHANDSHAKE", [], 16 * MIB, "tcp", "", world.master),
    )


@case()
def setup_where_no_master_is(world: World) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
        store = world.Store()
        assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 * MIB, "tcp", "", nobody) != 0


@case()
def close_twice(world: World) -> None:
    store = world.connect()
    assert store.close() == 0
    assert store.close() == 0


@case()
def close_before_setup(world: World) -> None:
    assert world.Store().close() == 0


@case()
def a_closed_store_can_be_set_up_again(world: World) -> None:
    store = world.connect()
    assert store.close() == 0
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 * MIB, "tcp", "", world.master) == 0
    assert store.get(world.put()) == b"some bytes"
    assert store.close() == 0


@case(
    ("put", lambda store: store.put("key", b"value"), -600),
    ("put_parts", lambda store: store.put_parts("key", b"value"), -600),
    ("put_batch", lambda store: store.put_batch(["key"], [b"value"]), -600),
    ("get_batch", lambda store: store.get_batch(["key", "other"]), [b"", b""]),
    ("get_buffer", lambda store: store.get_buffer("key"), None),
    ("batch_get_buffer", lambda store: store.batch_get_buffer(["key"]), [None]),
    ("is_exist", lambda store: store.is_exist("key"), -600),
    ("batch_is_exist", lambda store: list(store.batch_is_exist(["key"])), [-600]),
    ("get_size", lambda store: store.get_size("key"), -600),
    ("remove", lambda store: store.remove("key"), -600),
    ("batch_remove", lambda store: list(store.batch_remove(["key"])), [-600]),
    ("remove_all", lambda store: store.remove_all(), -600),
    ("remove_by_regex", lambda store: store.remove_by_regex("key"), -600),
    ("get_replica_desc", lambda store: list(store.get_replica_desc("key")), []),
    ("get_into", lambda store: store.get_into("key", Memory(8).address, 8), -600),
    ("batch_put_from", lambda store: list(store.batch_put_from(["key"], [Memory(8).address], [8])), [-600]),
    ("batch_get_into", lambda store: list(store.batch_get_into(["key"], [Memory(8).address], [8])), [-600]),
    ("get_hostname", lambda store: store.get_hostname(), ""),
    differs=BEFORE_SETUP,
)
def before_setup(world: World, _: str, call: Any, answer: Any) -> None:
    assert call(world.Store()) == answer


@case(
    ("put", lambda store: store.put("key", b"value") < 0),
    ("is_exist", lambda store: store.is_exist("key") < 0),
    ("batch_is_exist", lambda store: max(store.batch_is_exist(["key"])) < 0),
    ("remove", lambda store: store.remove("key") < 0),
    differs=BEFORE_SETUP,
)
def after_close(world: World, _: str, call: Any) -> None:
    store = world.connect()
    assert store.close() == 0
    assert call(store)


@case()
def before_setup_and_after_close_there_is_nothing_to_get(world: World) -> None:
    assert world.Store().get("key") == b""
    store = world.connect()
    assert store.close() == 0
    assert store.get("key") == b""


@case()
def the_health_is_that_of_the_connection(world: World) -> None:
    store = world.connect()
    assert (store.health_check(), world.Store().health_check()) == (0, 1)
    assert store.close() == 0
    assert store.health_check() == 1


@case()
def segments_are_mounted_and_unmounted(world: World) -> None:
    mounted = world.store.allocate_and_mount_segment(16 * MIB)
    assert mounted["ret"] == 0
    assert mounted["allocated_size"] == 16 * MIB
    assert world.store.unmount_and_free_segment(list(mounted["segment_ids"])) == 0


@case()
def a_segment_of_no_bytes_is_none(world: World) -> None:
    mounted = world.store.allocate_and_mount_segment(0)
    assert mounted["ret"] < 0
    assert (list(mounted["segment_ids"]), mounted["allocated_size"]) == ([], 0)


@case(-1, 1 << 64, differs=NO_SUCH_NUMBER)
def a_segment_of_no_size_is_none(world: World, size: int) -> None:
    assert world.store.allocate_and_mount_segment(size) == {"ret": -600, "segment_ids": [], "allocated_size": 0}


@case(1, 4095, differs="`allocate_and_mount_segment` of less than 4 KiB")
def a_segment_without_room_for_objects_is_none(world: World, size: int) -> None:
    assert world.store.allocate_and_mount_segment(size)["ret"] == -600


@case()
def unmounting_what_is_not_mounted(world: World) -> None:
    assert world.store.unmount_segment(["no such segment"]) < 0


@case()
def tasks_that_cannot_be(world: World) -> None:
    key = world.put()
    assert world.store.create_copy_task(key, ["no such segment"]) == ((0, 0), -600)
    assert world.store.create_move_task(key, world.store.get_hostname(), "no such segment") == ((0, 0), -600)
    assert world.store.query_task((1 << 40, 1 << 41)) == (None, -1400)


@case()
def nothing_was_offloaded(world: World) -> None:
    assert world.store.get_offload_rpc_read_count() == 0


@case()
def replicas_are_cleared_unless_somebody_reads(world: World) -> None:
    free, leased = world.put(), world.put()
    assert world.store.get(leased)
    assert list(world.store.batch_replica_clear([free, leased, world.key()], "")) == [free]
    assert world.store.is_exist(free) == 0


@case()
def replicas_are_cleared_on_one_segment(world: World) -> None:
    other = world.connect(16 * MIB)
    try:
        both, alone, config = world.key(), world.key(), world.Config()
        config.replica_num = 2
        assert world.store.put(both, pattern(100), config) == 0
        config.replica_num, config.preferred_segment = 1, world.store.get_hostname()
        assert world.store.put(alone, b"value", config) == 0
        keys = [both, alone, world.key()]
        assert list(world.store.batch_replica_clear(keys, other.get_hostname())) == [both]
        assert list(world.store.batch_replica_clear(keys, "no such segment")) == []
        assert len(world.store.get_replica_desc(both)) == 1
        assert world.store.get(both) == pattern(100)
        assert list(world.store.batch_replica_clear([alone], world.store.get_hostname())) == [alone]
        assert world.store.is_exist(alone) == 0
    finally:
        other.close()


@case()
def the_hostname_is_host_and_port(world: World) -> None:
    host, _, port = world.store.get_hostname().rpartition(":")
    assert host == "127.0.0.1"
    assert 0 < int(port) < 65536


@case()
def each_store_has_a_hostname_of_its_own(world: World) -> None:
    other = world.connect()
    assert other.get_hostname() != world.store.get_hostname()
    other.close()


@case()
def the_end_of_a_store_without_a_segment_takes_nothing(world: World) -> None:
    key, other = world.key(), world.connect()
    assert other.put(key, pattern(1000)) == 0
    assert other.close() == 0
    assert world.store.get(key) == pattern(1000)


@case(
    ("replica_num", 1),
    ("with_hard_pin", False),
    ("preferred_segment", ""),
    ("preferred_segments", []),
    ("prefer_alloc_in_same_node", False),
    ("nof_replica_num", 0),
    ("dfs_replica_num", 0),
    ("group_ids", None),
)
def a_config_begins_with(world: World, name: str, value: Any) -> None:
    assert getattr(world.Config(), name) == value


@case(
    ("replica_num", 3),
    ("with_hard_pin", True),
    ("preferred_segment", "127.0.0.1:1"),
    ("preferred_segments", ["a", "b"]),
    ("prefer_alloc_in_same_node", True),
    ("group_ids", ["group"]),
    ("soft_pin_ttl_ms", 1000),
)
def a_config_can_be_set(world: World, name: str, value: Any) -> None:
    config = world.Config()
    setattr(config, name, value)
    assert getattr(config, name) == value


@case()
def group_ids_can_be_detected(world: World) -> None:
    assert hasattr(world.Config(), "group_ids")


@case()
def a_config_does_not_take_what_it_does_not_know(world: World) -> None:
    with_error = world.Config()
    raises(TypeError, lambda: setattr(with_error, "replica_num", "two"))


@case(("own", lambda world: world.store.get_hostname()), ("unknown", lambda world: "10.9.8.7:1"))
def put_prefers_a_segment(world: World, _: str, segment: Any) -> None:
    key, config = world.key(), world.Config()
    config.preferred_segment = segment(world)
    assert world.store.put(key, b"value", config) == 0
    assert world.store.get(key) == b"value"


@case()
def more_replicas_than_segments(world: World) -> None:
    key, config = world.key(), world.Config()
    config.replica_num = 2
    assert world.store.put(key, b"value", config) == 0
    assert world.store.get(key) == b"value"


@case()
def put_with_a_hard_pin(world: World) -> None:
    key, config = world.key(), world.Config()
    config.with_hard_pin = True
    assert world.store.put(key, b"value", config) == 0
    assert world.store.get(key) == b"value"


@case()
def put_with_group_ids(world: World) -> None:
    keys, source, config = world.keys(2), world.memory(100, pattern(100)), world.Config()
    config.group_ids = ["group", "group"]
    parts = [[source.address], [source.address]]
    assert list(world.store.batch_put_from_multi_buffers(keys, parts, [[100], [100]], config)) == [0, 0]
    assert world.store.get_batch(keys) == [pattern(100)] * 2


@case()
def put_with_group_ids_where_one_is_empty(world: World) -> None:
    keys, source, config = world.keys(3), world.memory(100, pattern(100)), world.Config()
    config.group_ids = ["one", "two", "three"]
    assert list(world.store.batch_put_from(keys, [source.address] * 3, [100, 0, 50], config)) == [0, -600, 0]
    assert world.store.get_batch(keys) == [pattern(100), b"", pattern(100)[:50]]


@case(["group"], [])
def put_wants_a_group_per_key(world: World, groups: Any) -> None:
    keys, source, config = world.keys(2), world.memory(100), world.Config()
    config.group_ids = groups
    assert list(world.store.batch_put_from(keys, [source.address] * 2, [100, 0], config)) == [-600, -600]
    assert list(world.store.batch_is_exist(keys)) == [0, 0]


@case()
def two_segments_hold_two_replicas(world: World) -> None:
    other = world.connect(16 * MIB)
    try:
        key, config = world.key(), world.Config()
        config.replica_num = 2
        assert world.store.put(key, pattern(1000), config) == 0
        places = world.store.get_replica_desc(key)
        endpoints = {place.get_memory_descriptor().buffer_descriptor.transport_endpoint for place in places}
        assert len(endpoints) == 2
        assert world.reader.get(key) == pattern(1000)
    finally:
        other.close()


@case()
def the_preferred_segment_gets_the_object(world: World) -> None:
    other = world.connect(16 * MIB)
    try:
        places = []
        for preferred in (other, world.store, other):
            key, config = world.key(), world.Config()
            config.preferred_segment = preferred.get_hostname()
            assert world.store.put(key, pattern(1000), config) == 0
            (place,) = world.store.get_replica_desc(key)
            places.append(place.get_memory_descriptor().buffer_descriptor.transport_endpoint)
        assert places[0] == places[2] != places[1]
    finally:
        other.close()
