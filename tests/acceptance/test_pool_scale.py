"""The pool's questions cost the master the same, in time and memory, however many objects there are: `scripts/acceptance
pool_scale`."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

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
ROUNDS = 50
MOST_APART = 1.3
MOST_APART_OF_GETS = 1.5
MOST_APART_OF_PROBES = 3.0
"""A probe does little more than to look one key up, in a table that does not fit into the processor's caches any more, and a get
not much more. What those who ask feel of it, live_scale shows."""
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
    spent_s: float = 0.0
    """Of CPU time, on questions."""
    longest_s: float = 0.0
    pool: Pool = field(init=False)

    def __post_init__(self) -> None:
        ids = itertools.count(1 << 50)
        self.pool = Pool(PoolSettings(), term=1, next_id=lambda: next(ids), eviction=LRU)
        self.feed(p.NodeJoined(NODE, 1, offer(self.num_objects + self.num_objects // 8)))
        for number in range(1, self.num_nodes):
            self.feed(p.NodeJoined(f"node-{number}", 1, offer(1000)))

    def ask(self, message: Message) -> Message:
        """The answer. What it takes to ask is the client's."""
        data = encode(message)
        begun = time.process_time()
        (answer,) = self.feed(p.Asked(1, decode(data)))  # type: ignore[arg-type]
        encode(answer)
        took_s = time.process_time() - begun
        self.spent_s += took_s
        self.longest_s = max(self.longest_s, took_s)
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


def key_of(number: int) -> str:
    return f"{number:032x}"


def keys_of(batch: int) -> list[str]:
    return [key_of(number) for number in range(batch * BATCH, (batch + 1) * BATCH)]


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


def cpu_s(master: Master, do: Callable[[int], object], numbers: Sequence[int]) -> float:
    """What the master spends on each of them."""
    before_s = master.spent_s
    for number in numbers:
        do(number)
    return (master.spent_s - before_s) / len(numbers)


def filled(num_objects: int) -> tuple[Master, float]:
    """With so many objects in its pool; bytes for each of them."""
    master = Master(num_objects + ROUNDS * BATCH)
    gc.collect()
    before = resident_bytes()
    for batch in range(num_objects // BATCH):
        put(master, batch)
    return master, (resident_bytes() - before) / num_objects


def measure_sizes(_: object) -> list[dict[str, float]]:
    """Costs per object, at each size of the pool. All take turns: the processor's clock is another one each few seconds."""
    masters, bytes_each = zip(*map(filled, COUNTS), strict=True)
    longest = [master.longest_s for master in masters]
    found: list[dict[str, list[float]]] = [{"put": [], "get": [], "exists": []} for _ in masters]
    for number in range(ROUNDS):
        for costs, master in zip(found, masters, strict=True):
            batches = master.num_objects // BATCH - ROUNDS
            some = random.Random(number).choices(range(batches), k=QUESTIONS // ROUNDS)
            costs["put"].append(cpu_s(master, partial(put, master), [batches + number]))
            for name, question in (("get", Get), ("exists", Exists)):
                costs[name].append(cpu_s(master, partial(ask_all, master, question), some))
    return [
        {name: statistics.median(costs) / BATCH for name, costs in one.items()}
        | {"bytes": bytes_, "longest": longest_s}
        for one, bytes_, longest_s in zip(found, bytes_each, longest, strict=True)
    ]


def ask_all(master: Master, question: type[Get] | type[Exists], batch: int) -> None:
    master.ask(question(keys=keys_of(batch)))


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
    numbers = range(QUESTIONS)
    return {
        "put": cpu_s(master, partial(put, master), numbers) / BATCH,
        "get": cpu_s(master, lambda batch: master.ask(Get(keys=[key_of(batch * BATCH)])), numbers),
        "exists": cpu_s(master, lambda batch: master.ask(Exists(keys=[key_of(batch * BATCH)])), numbers),
        "anywhere": cpu_s(master, partial(put_anywhere, master), numbers),
    }


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
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        (costs,) = fresh.map(measure_sizes, [None])
    for count, cost in zip(COUNTS, costs, strict=True):
        print(
            f"\n{count:,} objects: {1 / cost['put']:,.0f} puts, {1 / cost['get']:,.0f} gets, {1 / cost['exists']:,.0f} "
            f"probes per second of CPU time, in batches of {BATCH}; {cost['bytes']:.0f} bytes per object; the longest "
            f"question took {cost['longest'] * 1e3:.1f} ms of it"
        )
    for name, most in (
        ("put", MOST_APART),
        ("get", MOST_APART_OF_GETS),
        ("bytes", MOST_APART),
        ("exists", MOST_APART_OF_PROBES),
    ):
        values = [cost[name] for cost in costs]
        assert max(values) <= most * min(values), name
