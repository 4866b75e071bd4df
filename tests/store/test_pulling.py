"""Real nodes copy real bytes, end to end; and shut their own copies out when an order has overtaken them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec import structs

from mooncake_core.roles.master.pool import NODE_TIMEOUT_S
from mooncake_core.store.node import Node
from mooncake_core.store.pulling import PULL_TIMEOUT_S
from mooncake_core.store.tasks import ANSWER_S
from mooncake_core.transfer.batch import Transfer
from mooncake_core.transfer.contract import Kind
from mooncake_core.transfer.engine import TransferEngine, Where
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import ClearSlots, Fence, Fenced, SlotClearing
from mooncake_core.wire.messages.tasks import (
    CopyObjects,
    DrainNode,
    Drains,
    Pull,
    Pulled,
    PullObjects,
    QueryDrains,
    QueryTasks,
    TaskReport,
    TasksStarted,
    TaskStatus,
)
from mooncake_core.wire.server import Call
from tests.store.world import SIZE, World, world

CALL = Call("master", 1e12)


async def ended(made: World, started: TasksStarted) -> list[TaskStatus]:
    """What became of tasks."""
    numbers = [task.task_id for task in started.tasks]
    while True:
        tasks = (await made.master.call(QueryTasks(task_ids=numbers), TaskReport, timeout_s=5)).tasks
        if all(task.state not in ("pending", "running") for task in tasks):
            return tasks
        await asyncio.sleep(0.005)


async def copied(made: World, *keys: str, target: str, move: bool = False) -> list[tuple[str, str]]:
    message = CopyObjects(keys=list(keys), target=target, move=move)
    started = await made.master.call(message, TasksStarted, timeout_s=5)
    return [(task.state, task.reason) for task in await ended(made, started)]


@pytest.mark.parametrize("transports", [("tcp",), ("shm", "tcp")], ids=["tcp", "shm"])
async def test_moved_bytes_are_read_from_the_target_when_the_source_is_gone(transports: Sequence[str]) -> None:
    async with world("a", transports=transports) as made:
        codes, values = await made.put("x", "y", size=SIZE)
        assert codes == ["", ""]
        await made.add_node("b")
        assert await copied(made, "x", "y", target="b", move=True) == [("done", "")] * 2
        await made.kill_node("a")
        assert await made.get("x", "y") == ([True, True], values)
        assert made.pool.check() == []


async def test_a_damaged_object_is_not_copied_and_stays_where_it_is() -> None:
    async with world("a") as made:
        await made.put("x")
        await made.add_node("b")
        made.damage("a")
        message = CopyObjects(keys=["x"], target="b", move=True)
        (started,) = (await made.master.call(message, TasksStarted, timeout_s=5)).tasks
        reason = ""
        while not reason:
            await asyncio.sleep(0.005)
            query = QueryTasks(task_ids=[started.task_id])
            reason = (await made.master.call(query, TaskReport, timeout_s=5)).tasks[0].reason
        assert reason == "checksum_mismatch"
        node = made.nodes["b"][0]
        assert all(node._slot(number) is None for number in range(node.offer().num_slots))
        entry = made.pool._index.readable("x")
        assert entry is not None
        assert list(entry.replicas) == ["a"]


async def test_a_drained_node_can_be_stopped_and_every_byte_is_there() -> None:
    async with world("a") as made:
        keys = [f"k{number}" for number in range(40)]
        codes, values = await made.put(*keys, size=3000)
        assert set(codes) == {""}
        await made.add_node("b")
        await made.master.call(DrainNode(name="a"), Done, timeout_s=5)
        while (await made.master.call(QueryDrains(), Drains, timeout_s=5)).drains[0].state != "drained":
            await asyncio.sleep(0.005)
        assert made.nodes["a"][0].offer().draining
        await made.kill_node("a")
        assert await made.get(*keys, size=3000) == ([True] * 40, values)


class HeldEngine(TransferEngine):
    """Reads begin, and end when they are let go on."""

    def __init__(self) -> None:
        super().__init__(owner="n", host_id="h", incarnation=7, transports=("tcp",))
        self.reading = asyncio.Event()
        self.go_on = asyncio.Event()

    async def transfer(
        self,
        kind: Kind,
        segment: SegmentDescriptor,
        transfers: Sequence[tuple[Sequence[memoryview], Where]],
        *,
        timeout_s: float | None = None,
    ) -> list[Transfer]:
        self.reading.set()
        await self.go_on.wait()
        return await super().transfer(kind, segment, transfers, timeout_s=timeout_s)


class Held:
    """A node whose copy of object x is under way."""

    def __init__(self, made: World) -> None:
        self.engine = HeldEngine()
        self.node = Node("n", capacity_bytes=1 << 20, object_size_bytes=1024, incarnation=7, engine=self.engine)
        entry = made.pool._index.readable("x")
        assert entry is not None
        source = made.nodes["a"][0].offer()
        self.pull = Pull(
            pull_id=1,
            key="x",
            parent="",
            allocation_id=entry.allocation_id,
            size_bytes=entry.size_bytes,
            checksum=entry.checksum,
            source_offset=entry.replicas["a"].offset,
            slot=3,
            offset=self.node.offer().data_offset,
        )
        self.message = PullObjects(term=5, round=1, order=4, source=source.read, pulls=[self.pull])

    async def begin(self) -> asyncio.Task[Pulled]:
        await self.node.fence(Fence(term=5, round=1), CALL)
        task = asyncio.create_task(self.node.pull_objects(self.message, CALL))
        await self.engine.reading.wait()
        return task

    @property
    def is_there(self) -> bool:
        return self.node._slot(3) is not None

    def close(self) -> None:
        self.node.close()
        self.engine.close()


async def test_a_repeated_order_waits_for_the_same_copy_and_one_that_is_done_is_not_copied_again() -> None:
    async with world("a") as made:
        await made.put("x")
        held = Held(made)
        first = await held.begin()
        again = asyncio.create_task(held.node.pull_objects(held.message, CALL))
        first.cancel()  # whoever asked has lost patience
        await asyncio.sleep(0)
        assert not held.is_there
        held.engine.go_on.set()
        assert (await again).refusals == [""]
        assert held.is_there
        held.engine.go_on.clear()
        assert (await held.node.pull_objects(held.message, CALL)).refusals == [""]
        held.close()


@pytest.mark.parametrize("how", ["fence", "clear"])
async def test_a_fence_and_a_clearing_are_answered_when_no_copy_touches_the_segment_any_more(how: str) -> None:
    async with world("a") as made:
        await made.put("x")
        held = Held(made)
        pulling_task = await held.begin()
        clearing = SlotClearing(slot=3, allocation_id=held.pull.allocation_id)
        order: asyncio.Task[Done] | asyncio.Task[Fenced] = asyncio.create_task(
            held.node.fence(Fence(term=6, round=1), CALL)
            if how == "fence"
            else held.node.clear_slots(ClearSlots(term=5, incarnation=7, slots=[clearing], order=6), CALL)
        )
        for _ in range(5):
            await asyncio.sleep(0)
        assert not order.done(), "the copy is still being written"
        held.engine.go_on.set()
        await order
        assert (await pulling_task).refusals == ["cancelled"]
        assert not held.is_there
        late = await held.node.pull_objects(held.message, CALL)
        assert late.refusals == ["stale_allocation"], "the order to copy was overtaken"
        held.close()


async def test_a_copy_goes_only_where_there_is_room_for_it() -> None:
    async with world("a") as made:
        await made.put("x")
        held = Held(made)
        held.engine.go_on.set()
        await held.node.fence(Fence(term=5, round=1), CALL)
        wrong = [
            structs.replace(held.pull, slot=-1),
            structs.replace(held.pull, slot=1 << 30),
            structs.replace(held.pull, slot=4, offset=0),
            structs.replace(held.pull, slot=5, offset=held.node.offer().data_offset + (1 << 20)),
            structs.replace(held.pull, slot=6, source_offset=held.pull.source_offset + 64),
            structs.replace(held.pull, slot=7, offset=held.pull.offset + (1 << 15), checksum=1),
        ]
        message = structs.replace(held.message, pulls=wrong)
        refusals = (await held.node.pull_objects(message, CALL)).refusals
        assert refusals == ["out_of_range"] * 4 + ["object_not_found", "checksum_mismatch"]
        assert all(held.node._slot(number) is None for number in range(10))
        held.close()


def test_a_node_gives_up_before_the_master_does() -> None:
    assert PULL_TIMEOUT_S < NODE_TIMEOUT_S < ANSWER_S
