"""Node and client over real sockets, with a master of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from mooncake_core.errors import ConfigError, MooncakeError, NoSpace, ObjectExists, StaleAllocation, StaleSegment
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.store.checksums import ON_LOOP_BYTES
from mooncake_core.store.node import Node
from mooncake_core.store.roster import NODE_RETRY_S
from mooncake_core.transfer.contract import Kind, Transport
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages import Message
from mooncake_core.wire.messages.pool import Fence, NewObject, PutStart, PutStarted
from mooncake_core.wire.server import Call
from tests.store.held_transport import held_transport
from tests.store.world import PATIENCE_S, SIZE, world
from tests.transfer.rdma_fabric import Network, transport_on


@pytest.mark.parametrize(
    "transports", [["tcp"], ["shm"], ["shm", "tcp"], [transport_on(Network())]], ids=["tcp", "shm", "both", "rdma"]
)
async def test_what_was_put_comes_back(transports: list[str | type[Transport]]) -> None:
    async with world("a", transports=transports) as w:
        keys = [f"k{number}" for number in range(20)]
        codes, values = await w.put(*keys)
        assert codes == [""] * 20
        found, got = await w.get(*keys, "missing")
        assert found == [True] * 20 + [False]
        assert got[:20] == values
        assert w.pool.check() == []


async def test_a_key_is_put_once() -> None:
    async with world("a") as w:
        _, (first,) = await w.put("k")
        codes, _ = await w.put("k")
        assert codes == [ObjectExists.code]
        assert (await w.get("k"))[1] == [first]


async def test_a_full_pool_is_a_result_and_not_an_exception() -> None:
    async with world("a") as w:
        codes, _ = await w.put(*[f"k{number}" for number in range(120)])
        assert codes.count("") == (1 << 20) // (10_048 + 64)
        assert set(codes) == {"", NoSpace.code}


async def test_the_next_replica_is_read_when_a_node_is_dead() -> None:
    async with world("a", "b") as w:
        codes, (value,) = await w.put("k", replicas=2)
        assert codes == [""]
        await w.kill_node("a")
        assert await w.get("k") == ([True], [value])


async def test_a_dead_node_is_a_miss_and_a_failed_put_gives_its_space_back() -> None:
    async with world("a") as w:
        await w.put("k")
        await w.kill_node("a")
        assert (await w.get("k"))[0] == [False]
        codes, _ = await w.put("other")
        assert codes == ["transfer"]
        assert w.pool.report(0).num_writing == 0
        assert w.pool.check() == []


async def test_a_writer_of_an_older_term_is_shut_out() -> None:
    async with world("a") as w:
        started = await w.store._master.call(_put_start("k"), PutStarted, timeout_s=5)
        node, _, _ = w.nodes["a"]
        await node.fence(Fence(term=7, round=1), Call("new master", 1e12))
        segment = started.segments["a"]
        errors = await w.engine.write(segment, [([memoryview(b"x" * 100)], node.offer().data_offset)])
        assert errors[0] is not None
        with pytest.raises(StaleAllocation, match="term 7"):
            await node.fence(Fence(term=6, round=1), Call("old master", 1e12))


async def test_a_writer_that_was_never_heard_of_again_is_shut_out_before_its_space_is_used_again() -> None:
    async with world("a", writer_deadline_s=0.1) as w:
        started = await w.store._master.call(_put_start("silent"), PutStarted, timeout_s=5)
        (grant,) = started.grants
        await _until(lambda: w.pool.report(0).used_bytes == 0)
        errors = await w.engine.write(started.segments["a"], [([memoryview(b"x")], grant.placements[0].offset)])
        assert isinstance(errors[0], StaleSegment)
        codes, (value,) = await w.put("k")
        assert codes == [""]
        assert await w.get("k") == ([True], [value])


async def test_a_write_that_may_still_land_keeps_its_space_until_the_writers_deadline() -> None:
    gate, transport = held_transport()
    async with world("a", transports=[transport], writer_deadline_s=0.5) as w:
        gate.hold(Kind.WRITE, "a")
        put = asyncio.create_task(w.put("k"))
        await asyncio.sleep(0.6)
        gate.open("a")
        assert (await put)[0] == ["transfer"]
        await asyncio.sleep(0.2)
        assert w.pool.report(0).quarantined_bytes > 0
        assert w.pool.report(0).num_writing == 0
        await _until(lambda: w.pool.report(0).used_bytes == 0)


async def test_a_put_goes_on_without_a_dead_node() -> None:
    async with world("a", "b") as w:
        await w.kill_node("b")
        codes, values = await w.put("k1", "k2", replicas=2)
        assert codes == ["", ""]
        assert await w.get("k1", "k2") == ([True, True], values)
        assert w.pool.check() == []


async def test_a_node_that_answers_a_fence_late_can_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    call_node = PoolDriver._call_node

    async def late(self: PoolDriver, name: str, message: Message, reply_type: type[Any]) -> Any:
        reply = await call_node(self, name, message, reply_type)
        if isinstance(message, Fence):
            await asyncio.sleep(NODE_RETRY_S + 0.2)
        return reply

    monkeypatch.setattr(PoolDriver, "_call_node", late)
    async with world("a") as w:
        await asyncio.sleep(NODE_RETRY_S + 0.4)  # the answer to the second fence
        assert (await w.put("k"))[0] == [""]


async def test_a_new_master_finds_all_that_was_committed() -> None:
    async with world("a", "b") as w:
        keys = [f"k{number}" for number in range(60)]
        codes, values = await w.put(*keys)
        assert codes == [""] * 60
        await w.stop_master()
        await w.start_master(2, w.address)
        for name in w.nodes:
            await w.join(name)
        found, got = await w.get(*keys)
        assert found == [True] * 60
        assert got == values
        assert w.pool.check() == []


@pytest.mark.parametrize("transport", ["tcp", "shm"])
async def test_300_puts_of_which_a_third_is_cancelled_midway_add_up(transport: str) -> None:
    async with world("a", "b", transports=[transport], capacity=32 << 20, writer_deadline_s=PATIENCE_S) as w:
        sizes = [SIZE if number % 10 else ON_LOOP_BYTES + 1 for number in range(300)]
        tasks = [asyncio.create_task(w.put(f"k{number}", size=size)) for number, size in enumerate(sizes)]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [result for result in results if isinstance(result, MooncakeError)]
        assert w.pool.report(0).num_writing == 0
        assert w.pool.check() == []
        for number in range(1, 300, 3):
            codes, values = cast(tuple[list[str], list[bytes]], results[number])
            assert codes == [""]
            assert await w.get(f"k{number}", size=sizes[number]) == ([True], values)
        removed = await w.store.remove_all(timeout_s=5, force=True)
        assert removed.removed >= 200
        await _until(lambda: w.pool.report(0).quarantined_bytes == w.pool.report(0).used_bytes)
        assert w.pool.check() == []


def test_capacity_the_machine_has_not_got_is_refused_with_arithmetic() -> None:
    engine = TransferEngine(owner="n", host_id="h", incarnation=1)
    with pytest.raises(ConfigError, match="expected .*TiB of memory .* there is .* lower its capacity"):
        Node("n", capacity_bytes=1 << 50, object_size_bytes=1 << 20, incarnation=1, engine=engine)
    engine.close()


def test_a_closed_node_leaves_no_memory_behind() -> None:
    engine = TransferEngine(owner="n", host_id="h", incarnation=1)
    node = Node("n", capacity_bytes=1 << 20, object_size_bytes=1024, incarnation=1, engine=engine)
    assert "mooncake-n" in Path("/proc/self/maps").read_text()
    node.close()
    node.close()
    engine.close()
    assert "mooncake-n" not in Path("/proc/self/maps").read_text()


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def _put_start(key: str) -> PutStart:
    return PutStart(objects=[NewObject(key=key, size_bytes=100)])
