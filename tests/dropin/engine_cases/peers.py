"""Peers that are asked, told, change, and go."""

from __future__ import annotations

from .world import NOBODY, FarEnd, World, case, pattern

RESTART = "a peer that was started anew under its name"


@case()
def probe(world: World) -> None:
    assert [world.engine.send_probe(world.far.name) for _ in range(5)] == [0] * 5
    assert world.engine.send_probe(world.name) == 0


@case()
def probe_nobody(world: World) -> None:
    assert world.engine.send_probe(NOBODY) == -102


@case("nobody", "")
def probe_what_is_no_name(world: World, name: str) -> None:
    assert world.engine.send_probe(name) == -101


@case()
def first_buffer(world: World) -> None:
    assert world.engine.get_first_buffer_address(world.far.name) == world.far.address
    assert world.engine.get_first_buffer_address(NOBODY) == 0


@case()
def warmup(world: World) -> None:
    assert world.engine.warmup_efa_segment(world.far.name) == 0


@case(1, 3)
def notifies_come(world: World, count: int) -> None:
    memory = world.memory(100, pattern(100, 31))
    for number in range(count):
        notify = world.module.TransferNotify("turn", str(number))
        code = world.engine.transfer_sync(
            world.far.name, memory.address, world.far.address, 100, world.module.TransferOpcode.Write, notify
        )
        assert code == 0
    told: list[list[str]] = []
    world.until(lambda: told.extend(world.far.ask("get_notifies")) or len(told) >= count)
    assert told == [["turn", str(number)] for number in range(count)]
    assert world.far.ask("get_notifies") == []


@case()
def notify_of_a_batch(world: World) -> None:
    memory = world.memory(100, pattern(100, 32))
    code = world.engine.batch_transfer_sync(
        world.far.name,
        [memory.address, memory.address],
        [world.far.address, world.far.address + 200],
        [100, 100],
        opcode=world.module.TransferOpcode.Write,
        notify=world.module.TransferNotify("batch", "ß"),
    )
    assert code == 0
    assert world.until(lambda: world.far.ask("get_notifies")) == [["batch", "ß"]]


@case()
def no_notifies(world: World) -> None:
    assert world.engine.get_notifies() == []


@case()
def memory_registered_after_the_first_transfer(world: World) -> None:
    memory = world.memory(100, pattern(100, 33))
    assert world.engine.transfer_sync_write(world.far.name, memory.address, world.far.address, 100) == 0
    later = world.far.memory(100, registered=False)
    assert world.engine.transfer_sync_write(world.far.name, memory.address, later, 100) == -1
    assert world.far.ask("register_memory", later, 100) == 0
    assert world.engine.transfer_sync_write(world.far.name, memory.address, later, 100) == 0
    assert world.far.content(100, later) == memory.content
    assert world.far.ask("unregister_memory", later) == 0
    assert world.engine.transfer_sync_write(world.far.name, memory.address, later, 100) == -1
    assert world.far.ask("register_memory", later, 100) == 0
    assert world.engine.transfer_sync_write(world.far.name, memory.address, later, 100) == 0
    assert world.far.ask("unregister_memory", later) == 0


@case()
def a_peer_that_is_killed(world: World) -> None:
    far = FarEnd()
    memory = world.memory(100)
    assert world.engine.transfer_sync_write(far.name, memory.address, far.address, 100) == 0
    far.kill()
    assert world.engine.transfer_sync_write(far.name, memory.address, far.address, 100) == -1
    assert world.engine.send_probe(far.name) == -102
    assert world.engine.transfer_sync_write(world.far.name, memory.address, world.far.address, 100) == 0


@case(differs=RESTART)
def a_peer_that_is_started_anew(world: World) -> None:
    first = FarEnd()
    memory = world.memory(100, pattern(100, 34))
    assert world.engine.transfer_sync_write(first.name, memory.address, first.address, 100) == 0
    first.kill()
    second = FarEnd(first.name, "http://127.0.0.1:1/metadata")  # with a metadata server the name has its port
    assert second.name == first.name
    assert world.engine.transfer_sync_write(second.name, memory.address, second.address, 100) == -1  # noticed
    assert second.content(100) == bytes(100)
    assert world.engine.transfer_sync_write(second.name, memory.address, second.address, 100) == 0
    assert second.content(100) == memory.content
    second.kill()
