"""The pool's questions cost the master the same, in time and memory, however many objects there are: `scripts/acceptance
pool_scale`."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mooncake_core.roles.master.memory import resident_bytes
from mooncake_core.store import events as p
from mooncake_core.store.evictions import LRU
from mooncake_core.store.pool import Pool
from mooncake_core.store.pool_settings import PoolSettings
from mooncake_core.wire.messages import Message, decode, encode
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import (
    BlockReport,
    Commit,
    Exists,
    Get,
    NewObject,
    PutEnd,
    PutStart,
    PutStarted,
)

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
NODE = "a"
"""The one that is written to."""
NODE_COUNTS = (1, 100, 1000)
COUNTS = (10_000, 100_000, 1_000_000)
BATCH = 64
QUESTIONS = 1000
MOST_APART = 1.3
MOST_APART_OF_PROBES = 3.0
"""A probe does little more than to look one key up, in a table that does not fit into the processor's caches any more."""
MOST_APART_BY_NODES = 2.0
"""More nodes are more memory, too."""
SEGMENT = SegmentDescriptor(owner="a", host_id="h", incarnation=1, length_bytes=1, paths={"tcp": b"x"})


def offer(num_slots: int) -> SegmentOffer:
    return SegmentOffer(
        capacity_bytes=num_slots * 1024, data_offset=0, num_slots=num_slots, slot_bytes=64, read=SEGMENT, write=SEGMENT
    )


@dataclass
class Master:
    """A pool and its nodes, which answer at once; messages are decoded and encoded as they are on the wire."""

    num_objects: int
    num_nodes: int = 1
    longest_s: float = 0.0
    pool: Pool = field(init=False)

    def __post_init__(self) -> None:
        ids = itertools.count(1 << 50)
        self.pool = Pool(PoolSettings(), term=1, next_id=lambda: next(ids), eviction=LRU)
        self.feed(p.NodeJoined(NODE, 1, offer(self.num_objects + self.num_objects // 8)))
        for number in range(1, self.num_nodes):
            self.feed(p.NodeJoined(f"node-{number}", 1, offer(1000)))

    def ask(self, message: Message) -> Message:
        begun = time.process_time()
        (answer,) = self.feed(p.Asked(1, decode(encode(message))))  # type: ignore[arg-type]
        encode(answer)
        self.longest_s = max(self.longest_s, time.process_time() - begun)
        return answer

    def feed(self, event: p.Event) -> list[Message]:
        answers: list[Message] = []
        events = [event]
        while events:
            for command in self.pool.handle(events.pop(), 1.0):
                match command:
                    case p.FenceNode(name, incarnation, round_):
                        events.append(p.NodeFenced(name, incarnation, round_, SEGMENT))
                    case p.AskReport():
                        report = BlockReport(incarnation=1, objects=[], next_cursor=-1)
                        events.append(p.BlocksReported(command, report))
                    case p.Answer(message=message):
                        assert not isinstance(message, Exception), message
                        answers.append(message)
        return answers


def keys_of(batch: int) -> list[str]:
    return [f"{number:032x}" for number in range(batch * BATCH, (batch + 1) * BATCH)]


def put(master: Master, batch: int) -> None:
    """A chain of objects."""
    keys = keys_of(batch)
    objects = [
        NewObject(key=key, size_bytes=900, parent=parent) for key, parent in zip(keys, ["", *keys[:-1]], strict=True)
    ]
    started = master.ask(PutStart(objects=objects, preferred_node=NODE))
    assert isinstance(started, PutStarted)
    commits = [Commit(allocation_id=g.allocation_id, checksum=g.allocation_id, nodes=[NODE]) for g in started.grants]
    master.ask(PutEnd(term=1, commits=commits, settled=[NODE]))


def cpu_s_per_key(do: Callable[[int], object], batches: list[int]) -> float:
    begun = time.process_time()
    for batch in batches:
        do(batch)
    return (time.process_time() - begun) / len(batches) / BATCH


def measure(num_objects: int) -> dict[str, float]:
    """Costs with so many objects in the pool."""
    master = Master(num_objects)
    num_batches = num_objects // BATCH
    gc.collect()
    before = resident_bytes()
    costs = {"put": cpu_s_per_key(lambda batch: put(master, batch), list(range(num_batches)))}
    costs["bytes"] = (resident_bytes() - before) / num_objects
    some = [random.Random(number).randrange(num_batches) for number in range(QUESTIONS)]
    costs["get"] = cpu_s_per_key(lambda batch: master.ask(Get(keys=keys_of(batch))), some)
    costs["exists"] = cpu_s_per_key(lambda batch: master.ask(Exists(keys=keys_of(batch))), some)
    costs["longest"] = master.longest_s
    return costs


def put_anywhere(master: Master, number: int) -> None:
    """One object, on whichever node has most room."""
    started = master.ask(PutStart(objects=[NewObject(key=f"single-{number}", size_bytes=900)]))
    assert isinstance(started, PutStarted)
    (grant,) = started.grants
    nodes = [placement.node for placement in grant.placements]
    assert len(nodes) == 1
    master.ask(
        PutEnd(term=1, commits=[Commit(allocation_id=grant.allocation_id, checksum=1, nodes=nodes)], settled=nodes)
    )


def measure_nodes(num_nodes: int) -> dict[str, float]:
    """Costs of single objects with so many nodes."""
    master = Master(2 * QUESTIONS * BATCH, num_nodes)
    batches = list(range(QUESTIONS))
    costs = {"put": cpu_s_per_key(lambda batch: put(master, batch), batches)}
    for name, question in (("get", Get), ("exists", Exists)):
        costs[name] = BATCH * cpu_s_per_key(
            lambda batch, kind=question: master.ask(kind(keys=keys_of(batch)[:1])), batches
        )  # type: ignore[misc]
    costs["anywhere"] = BATCH * cpu_s_per_key(lambda number: put_anywhere(master, number), batches)
    return costs


def test_costs_do_not_depend_on_how_many_nodes_there_are() -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        costs = fresh.map(measure_nodes, NODE_COUNTS, chunksize=1)
    for count, cost in zip(NODE_COUNTS, costs, strict=True):
        print(
            f"\n{count:,} nodes: {1e6 * cost['put']:.1f} us of CPU time per put in batches of {BATCH}, "
            f"{1e6 * cost['anywhere']:.1f} per single put to any node, "
            f"{1e6 * cost['get']:.1f} per single get, {1e6 * cost['exists']:.1f} per single probe"
        )
    for name in costs[0]:
        assert max(cost[name] for cost in costs) <= MOST_APART_BY_NODES * min(cost[name] for cost in costs), name


def test_costs_do_not_depend_on_how_many_objects_there_are() -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:  # for each a process of its own
        costs = fresh.map(measure, COUNTS, chunksize=1)
    for count, cost in zip(COUNTS, costs, strict=True):
        print(
            f"\n{count:,} objects: {1 / cost['put']:,.0f} puts, {1 / cost['get']:,.0f} gets, {1 / cost['exists']:,.0f} "
            f"probes per second of CPU time, in batches of {BATCH}; {cost['bytes']:.0f} bytes per object; the longest "
            f"question took {cost['longest'] * 1e3:.1f} ms of it"
        )
    for name, most in (
        ("put", MOST_APART),
        ("get", MOST_APART),
        ("bytes", MOST_APART),
        ("exists", MOST_APART_OF_PROBES),
    ):
        values = [cost[name] for cost in costs]
        assert max(values) <= most * min(values), name
