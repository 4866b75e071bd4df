"""Making an engine ready, and what it tells."""

from __future__ import annotations

import json
from typing import Any

from .world import NOBODY, World, case, raises

BEFORE = "calls before `initialize`"
HOST = "`initialize` with a host that cannot be found"
PROTOCOL = "`initialize` with a protocol that there is not"
METADATA = "`initialize` with a metadata server"
POINTER = "`get_engine_ptr`"


@case("127.0.0.1", "localhost", "127.0.0.1:17123", "")
def initialize_at(world: World, host: str) -> None:
    engine = world.module.TransferEngine()
    assert engine.initialize(host, "P2PHANDSHAKE", "tcp", "") == 0
    assert 0 < engine.get_rpc_port() < 65_536
    assert world.engine.send_probe(f"127.0.0.1:{engine.get_rpc_port()}") == 0


@case("tcp", "rdma", "")
def initialize_with_protocol(world: World, protocol: str) -> None:
    engine = world.module.TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", protocol, "") == 0
    assert (
        engine.transfer_sync_write(world.far.name, world.memory(10, b"0123456789").address, world.far.address, 10) == 0
    )
    assert world.far.content(10) == b"0123456789"


@case()
def initialize_with_an_unknown_protocol(world: World) -> None:
    code = world.module.TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "smoke-signals", "")
    assert code == world.here(-101, 0)


@case()
def initialize_ext(world: World) -> None:
    engine = world.module.TransferEngine()
    assert engine.initialize_ext("127.0.0.1", "P2PHANDSHAKE", "tcp", "", "p2p") == 0
    assert engine.get_rpc_port() > 0


@case()
def initialize_without_metadata(world: World) -> None:
    assert world.module.TransferEngine().initialize("127.0.0.1", "", "tcp", "") == -1


@case(differs=HOST)
def initialize_at_a_host_that_is_none(world: World) -> None:
    assert world.module.TransferEngine().initialize("no-such-host.invalid", "P2PHANDSHAKE", "tcp", "") == -101


@case(differs=METADATA)
def initialize_with_a_metadata_server(world: World) -> None:
    port = world.connect().get_rpc_port()  # one that is free, or nearly
    engine = world.module.TransferEngine()
    name = f"127.0.0.1:{port + 1}"
    assert engine.initialize(name, f"http://{NOBODY}/metadata", "tcp", "") == 0
    assert engine.get_rpc_port() == port + 1
    assert world.engine.send_probe(name) == 0


@case(
    (None, "P2PHANDSHAKE", "tcp", ""),
    (1, "P2PHANDSHAKE", "tcp", ""),
    ("127.0.0.1", 5, "tcp", ""),
    ("127.0.0.1", "P2PHANDSHAKE", 1.5, ""),
    ("127.0.0.1", "P2PHANDSHAKE", "tcp"),
)
def initialize_wants_texts(world: World, *arguments: Any) -> None:
    raises((TypeError, RuntimeError, UnicodeDecodeError), lambda: world.module.TransferEngine().initialize(*arguments))


@case()
def bytes_are_texts(world: World) -> None:
    assert world.module.TransferEngine().initialize(b"127.0.0.1", b"P2PHANDSHAKE", b"tcp", b"") == 0
    assert world.engine.send_probe(world.far.name.encode()) == 0


@case()
def ports_of_two_engines_differ(world: World) -> None:
    assert world.connect().get_rpc_port() != world.engine.get_rpc_port()


@case()
def initialize_again(world: World) -> None:
    engine = world.connect()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    assert world.engine.send_probe(f"127.0.0.1:{engine.get_rpc_port()}") == 0


@case(
    ("get_rpc_port", 0),
    ("register_memory", -1, 4096, 10),
    ("unregister_memory", -1, 4096),
    ("batch_register_memory", -1, [4096], [10]),
    ("transfer_sync_write", -1, NOBODY, 4096, 4096, 10),
    ("batch_transfer_sync_read", -1, NOBODY, [4096], [4096], [10]),
    ("batch_transfer_async_write", 0, NOBODY, [4096], [4096], [10]),
    ("transfer_check_status", -1, 1),
    ("get_first_buffer_address", 0, NOBODY),
    ("allocate_managed_buffer", 0, 10),
    ("get_notifies", []),
    differs=BEFORE,
)
def before_initialize(world: World, name: str, expected: Any, *arguments: Any) -> None:
    assert getattr(world.module.TransferEngine(), name)(*arguments) == expected


@case()
def probe_before_initialize(world: World) -> None:
    assert world.module.TransferEngine().send_probe(world.far.name) == -1


@case()
def topology_is_json(world: World) -> None:
    topology = json.loads(world.engine.get_local_topology())
    assert topology["cpu:0"] == [[], []]


@case()
def get_engine_gives_something(world: World) -> None:
    assert world.engine.get_engine() is not None


@case(differs=POINTER)
def get_engine_ptr(world: World) -> None:
    assert world.engine.get_engine_ptr() == 0


@case()
def opcodes(world: World) -> None:
    opcode = world.module.TransferOpcode
    assert (int(opcode.Read), int(opcode.Write)) == (0, 1)
    assert (opcode.Read.name, opcode.Write.value) == ("Read", 1)
    assert world.module.TransferEngine.TransferOpcode is opcode


@case()
def notifies_have_two_texts(world: World) -> None:
    notify = world.module.TransferNotify("name", "message")
    assert (notify.name, notify.msg) == ("name", "message")
    notify.msg = "other"
    assert notify.msg == "other"
    empty = world.module.TransferNotify()
    assert (empty.name, empty.msg) == ("", "")
