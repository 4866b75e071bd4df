"""A node obeys the newest master, and shuts writers out before it says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from mooncake_core.errors import StaleAllocation
from mooncake_core.store.layout import Header, Slot, SlotState, pack_header, pack_slot
from mooncake_core.store.node import Node
from mooncake_core.transfer.engine import TransferEngine
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import ClearSlots, Fence, Fenced, ReportBlocks, SlotClearing
from mooncake_core.wire.server import Call

CALL = Call("master", 1e12)


class SlowEngine(TransferEngine):
    """The first withdrawal ends when it is let go on: until then an old writer is at work."""

    def __init__(self) -> None:
        super().__init__(owner="n", host_id="h", incarnation=1, transports=())
        self.withdrawing: list[SegmentDescriptor] = []
        self.withdrawn: list[SegmentDescriptor] = []
        self.go_on = threading.Event()

    def withdraw(self, descriptor: SegmentDescriptor) -> None:
        self.withdrawing.append(descriptor)
        if len(self.withdrawing) == 1:
            assert self.go_on.wait(10)
        super().withdraw(descriptor)
        self.withdrawn.append(descriptor)


@pytest.fixture
def engine() -> Iterator[SlowEngine]:
    made = SlowEngine()
    yield made
    made.go_on.set()
    made.close()


@pytest.fixture
def node(engine: SlowEngine) -> Iterator[Node]:
    made = Node("n", capacity_bytes=1 << 20, object_size_bytes=1024, incarnation=1, engine=engine)
    yield made
    made.close()


async def fence(node: Node, term: int, round_: int) -> Fenced:
    return await node.fence(Fence(term=term, round=round_), CALL)


async def test_a_repeated_fence_waits_for_the_same_withdrawal_and_gets_the_same_answer(
    engine: SlowEngine, node: Node
) -> None:
    first = asyncio.create_task(fence(node, 1, 1))
    again = asyncio.create_task(fence(node, 1, 1))
    await asyncio.sleep(0.05)
    assert not first.done()
    assert not again.done()
    first.cancel()  # whoever asked has lost patience
    later = asyncio.create_task(fence(node, 1, 1))
    await asyncio.sleep(0.05)
    assert not later.done()
    engine.go_on.set()
    assert (await again).write == (await later).write == (await fence(node, 1, 1)).write == node.offer().write
    assert len(engine.withdrawn) == 1


async def test_a_later_fence_waits_for_the_withdrawals_of_earlier_ones(engine: SlowEngine, node: Node) -> None:
    old = node.offer().write
    first = asyncio.create_task(fence(node, 1, 1))
    await asyncio.sleep(0)
    second = asyncio.create_task(fence(node, 1, 2))
    await asyncio.sleep(0.05)
    assert not second.done(), "an old writer is still at work"
    engine.go_on.set()
    assert (await second).write == node.offer().write
    assert engine.withdrawn[0] == old
    assert len(engine.withdrawn) == 2
    with pytest.raises(StaleAllocation, match="newest"):  # what it would have got is withdrawn
        await first
    with pytest.raises(StaleAllocation, match="newest"):
        await fence(node, 1, 1)


async def test_an_older_term_is_refused(engine: SlowEngine, node: Node) -> None:
    engine.go_on.set()
    await fence(node, 7, 1)
    with pytest.raises(StaleAllocation, match="term 7"):
        await fence(node, 6, 5)
    with pytest.raises(StaleAllocation, match="term 7"):
        await node.clear_slots(ClearSlots(term=6, incarnation=1, slots=[]), CALL)
    with pytest.raises(StaleAllocation, match="term 7"):
        await node.report_blocks(ReportBlocks(term=6), CALL)


def place(node: Node, number: int, allocation_id: int, state: SlotState = SlotState.COMMITTED) -> None:
    """What a writer leaves."""
    offset = node.offer().data_offset + number * 4096
    slot = pack_slot(Slot(state, allocation_id, offset, 100, 5))
    header = pack_header(Header(allocation_id, 100, f"k{allocation_id}", ""))
    node._view[number * 64 : number * 64 + len(slot)] = slot
    node._view[offset : offset + len(header)] = header


async def test_a_slot_is_cleared_only_if_it_still_holds_that_allocation(node: Node) -> None:
    place(node, 0, 10)
    place(node, 1, 11)
    place(node, 2, 12)
    slots = [
        SlotClearing(slot=0, allocation_id=10),
        SlotClearing(slot=1, allocation_id=99),
        SlotClearing(slot=2, allocation_id=99, only_mark=True),
    ]
    await node.clear_slots(ClearSlots(term=1, incarnation=1, slots=slots), CALL)
    report = await node.report_blocks(ReportBlocks(term=1), CALL)
    assert [(stored.slot, stored.key, stored.removed) for stored in report.objects] == [
        (1, "k11", False),
        (2, "k12", False),
    ]


async def test_the_directory_tells_what_is_committed_and_what_is_removed_and_drops_reservations(node: Node) -> None:
    place(node, 0, 10)
    place(node, 1, 11)
    place(node, 2, 12, SlotState.RESERVED)
    mark = SlotClearing(slot=1, allocation_id=11, only_mark=True)
    await node.clear_slots(ClearSlots(term=1, incarnation=1, slots=[mark]), CALL)
    report = await node.report_blocks(ReportBlocks(term=1), CALL)
    assert [(stored.key, stored.removed) for stored in report.objects] == [("k10", False), ("k11", True)]
    assert node._slot(2) is None
