"""The pool as a state machine: whatever happens, the books are right and nobody's bytes are overwritten."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mooncake_core.errors import NoSpace, ObjectExists, ObjectLeased, ObjectNotFound, StaleAllocation
from mooncake_core.store import events as p
from mooncake_core.store.eviction import LRU
from mooncake_core.store.layout import SLOT_BYTES, extent_bytes
from mooncake_core.store.pool import Pool, PoolSettings
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import (
    BlockReport,
    Commit,
    Exists,
    ExistsReply,
    Get,
    Got,
    Grant,
    NewObject,
    PutEnd,
    PutEnded,
    PutStart,
    PutStarted,
    Remove,
    RemoveAll,
    Removed,
    RemovedAll,
    SlotClearing,
    StoredObject,
)

NODES = ["a", "b", "c"]
KEYS = [f"k{number}" for number in range(12)]
SETTINGS = PoolSettings(read_lease_s=5, writer_deadline_s=10, high_watermark=0.8, low_watermark=0.5)


def descriptor(name: str, incarnation: int) -> SegmentDescriptor:
    return SegmentDescriptor(owner=name, host_id="h", incarnation=incarnation, length_bytes=1, paths={})


@dataclass
class NodeModel:
    """A node's directory as the node itself has it."""

    name: str
    incarnation: int
    capacity: int = 64 * 60
    num_slots: int = 12
    slots: dict[int, StoredObject] = field(default_factory=dict)
    reserved: dict[int, int] = field(default_factory=dict)

    def offer(self) -> SegmentOffer:
        return SegmentOffer(
            capacity_bytes=self.capacity,
            data_offset=SLOT_BYTES * 64,
            num_slots=self.num_slots,
            slot_bytes=SLOT_BYTES,
            read=descriptor(self.name, self.incarnation),
            write=descriptor(self.name, self.incarnation),
        )

    def report(self, cursor: int) -> BlockReport:
        part = [self.slots[slot] for slot in sorted(self.slots) if cursor <= slot < cursor + 5]
        done = cursor + 5 >= self.num_slots
        return BlockReport(incarnation=self.incarnation, objects=part, next_cursor=-1 if done else cursor + 5)

    def clear(self, clearings: Sequence[SlotClearing]) -> None:
        for clearing in clearings:
            stored = self.slots.get(clearing.slot)
            if stored is not None and stored.allocation_id == clearing.allocation_id:
                del self.slots[clearing.slot]
            self.reserved.pop(clearing.slot, None)


class Harness:
    """A pool, its nodes, and a driver that can lose what nodes answer."""

    def __init__(self, settings_: PoolSettings = SETTINGS) -> None:
        self.settings = settings_
        self.now = 100.0
        self.nodes: dict[str, NodeModel] = {}
        self.incarnations = itertools.count(1)
        self.tokens = itertools.count()
        self.terms = itertools.count(1)
        self.ids = itertools.count(1)
        self.index: dict[str, set[str]] = {}
        self.unanswered: list[p.Event] = []
        self.restart()

    def restart(self) -> None:
        """A new master of a higher term, that knows nothing."""
        self.term = next(self.terms)
        self.pool = Pool(self.settings, term=self.term, next_id=lambda: next(self.ids), eviction=LRU)
        self.index = {}
        self.unanswered.clear()
        for node in self.nodes.values():
            node.reserved.clear()
            self.feed(p.NodeJoined(node.name, node.incarnation, node.offer()))

    def feed(self, event: p.Event) -> list[p.Command]:
        commands = self.pool.handle(event, self.now)
        for command in commands:
            self.execute(command)
        return commands

    def execute(self, command: p.Command) -> None:
        match command:
            case p.FenceNode(name, incarnation):
                self.unanswered.append(p.NodeFenced(name, incarnation, descriptor(name, incarnation)))
            case p.AskReport(name, _, cursor):
                if name in self.nodes:
                    self.unanswered.append(p.BlocksReported(name, self.nodes[name].report(cursor)))
            case p.ClearNodeSlots(name, incarnation, slots):
                node = self.nodes.get(name)
                if node is not None and node.incarnation == incarnation:
                    node.clear(slots)
                    self.unanswered.append(p.SlotsCleared(name, incarnation, slots))
            case p.BlocksStored(node_name, keys):
                assert not self.index.setdefault(node_name, set()) & set(keys)
                self.index[node_name] |= set(keys)
            case p.BlocksRemoved(node_name, keys):
                assert self.index[node_name] >= set(keys)
                self.index[node_name] -= set(keys)

    def ask(self, message: object) -> object:
        token = next(self.tokens)
        for command in self.feed(p.Asked(token, message)):  # type: ignore[arg-type]
            if isinstance(command, p.Answer) and command.token == token:
                return command.message
        raise AssertionError("no answer")

    def answer_all(self) -> None:
        while self.unanswered:
            self.feed(self.unanswered.pop(0))

    def join(self, name: str) -> None:
        node = NodeModel(name, next(self.incarnations))
        self.nodes[name] = node
        self.feed(p.NodeJoined(name, node.incarnation, node.offer()))

    def settle(self) -> None:
        """Answers everything and lets all deadlines pass."""
        for _ in range(4):
            self.answer_all()
            self.now += 60
            self.feed(p.Tick())
        self.answer_all()

    def put(self, key: str, size: int = 64, parent: str = "", replicas: int = 1, preferred: str = "") -> Grant:
        wanted = [NewObject(key=key, size_bytes=size, parent=parent)]
        started = self.ask(PutStart(objects=wanted, replicas=replicas, preferred_node=preferred))
        assert isinstance(started, PutStarted)
        return started.grants[0]

    def write(self, grant: Grant, size: int = 64, parent: str = "") -> None:
        """What the client writes to the nodes, one-sided."""
        for placement in grant.placements:
            node = self.nodes.get(placement.node)
            if node is None or node.incarnation != placement.incarnation:
                continue
            node.slots[placement.slot] = StoredObject(
                key=grant.key,
                parent=parent,
                allocation_id=grant.allocation_id,
                size_bytes=size,
                checksum=grant.allocation_id,
                slot=placement.slot,
                offset=placement.offset,
            )

    def end(self, grant: Grant, *, revoke: bool = False, term: int | None = None) -> str:
        commits = [] if revoke else [Commit(allocation_id=grant.allocation_id, checksum=grant.allocation_id)]
        revoked = [grant.allocation_id] if revoke else []
        ended = self.ask(PutEnd(term=self.term if term is None else term, commits=commits, revoked=revoked))
        assert isinstance(ended, PutEnded)
        return ended.refusals[0] if commits else ""

    def store(self, key: str, size: int = 64, parent: str = "", **options: object) -> Grant:
        grant = self.put(key, size, parent, **options)  # type: ignore[arg-type]
        assert grant.placements, grant.refusal
        self.write(grant, size, parent)
        assert self.end(grant) == ""
        return grant

    def exists(self, *keys: str) -> list[bool]:
        reply = self.ask(Exists(keys=list(keys)))
        assert isinstance(reply, ExistsReply)
        return reply.present

    def get(self, *keys: str) -> Got:
        got = self.ask(Get(keys=list(keys)))
        assert isinstance(got, Got)
        return got


@pytest.fixture
def harness() -> Harness:
    made = Harness()
    made.join("a")
    made.answer_all()
    return made


def test_an_object_is_readable_only_after_its_commit(harness: Harness) -> None:
    grant = harness.put("k")
    assert harness.exists("k") == [False]
    assert harness.get("k").objects == [None]
    assert harness.end(grant) == ""
    assert harness.exists("k") == [True]
    assert harness.put("k").refusal == ObjectExists.code


def test_a_key_that_is_being_written_is_skipped(harness: Harness) -> None:
    harness.put("k")
    assert harness.put("k").refusal == ObjectExists.code


def test_a_put_that_never_ends_gives_its_space_back(harness: Harness) -> None:
    grant = harness.put("k")
    harness.settle()
    assert harness.end(grant) == StaleAllocation.code
    assert harness.pool.usage("a")[1] == 0
    assert harness.put("k").placements


def test_a_commit_of_another_term_is_refused(harness: Harness) -> None:
    grant = harness.put("k")
    assert harness.end(grant, term=harness.term + 1) == StaleAllocation.code


def test_space_is_used_again_only_after_the_node_has_cleared_the_slot(harness: Harness) -> None:
    grants = [harness.store(f"k{number}") for number in range(12)]
    assert harness.put("more").refusal == NoSpace.code
    harness.answer_all()
    removed = harness.ask(Remove(keys=[grants[-1].key]))
    assert isinstance(removed, Removed)
    lost = list(harness.unanswered)
    harness.unanswered.clear()
    used = harness.pool.usage("a")[1]
    harness.now += 60
    harness.feed(p.Tick())
    assert lost
    assert harness.pool.usage("a")[1] == used
    harness.answer_all()
    assert harness.pool.usage("a")[1] < used


def test_a_leased_object_is_not_removed_and_a_forced_one_keeps_its_space_for_the_lease(harness: Harness) -> None:
    harness.store("k")
    harness.get("k")
    assert harness.ask(Remove(keys=["k", "x"])) == Removed(refusals=[ObjectLeased.code, ObjectNotFound.code])
    assert harness.ask(RemoveAll()) == RemovedAll(removed=0, kept=1)
    assert harness.ask(RemoveAll(force=True)) == RemovedAll(removed=1, kept=0)
    assert harness.exists("k") == [False]
    harness.answer_all()
    assert harness.pool.usage("a")[1] > 0
    harness.settle()
    assert harness.pool.usage("a")[1] == 0


def test_asking_whether_it_exists_takes_no_lease(harness: Harness) -> None:
    harness.store("k")
    harness.exists("k")
    assert harness.ask(Remove(keys=["k"])) == Removed(refusals=[""])


def test_eviction_takes_the_tail_of_a_chain_and_never_what_is_leased(harness: Harness) -> None:
    size = 64 * 4
    for number in range(8):
        harness.store(f"k{number}", size, parent=f"k{number - 1}" if number else "")
    harness.get("k7")  # the tail is leased: then nothing of the chain may go
    harness.put("more", 64 * 30)
    assert harness.exists(*KEYS[:8]) == [True] * 8
    harness.now += 60
    harness.put("more", 64 * 30)
    left = harness.exists(*KEYS[:8])
    assert left == sorted(left, reverse=True)
    assert 0 < sum(left) < 8


def test_running_out_of_slots_evicts_too(harness: Harness) -> None:
    for number in range(12):
        harness.store(f"k{number}", 8)
    assert harness.pool.usage("a")[1] < 0.5 * harness.nodes["a"].capacity
    assert harness.put("more", 8).refusal == NoSpace.code
    harness.answer_all()
    assert harness.put("more", 8).placements


def test_the_least_recently_used_goes_first(harness: Harness) -> None:
    for number in range(8):
        harness.store(f"k{number}", 64 * 4)
    harness.get("k0", "k1")
    harness.now += 60
    harness.put("more", 64 * 20)
    assert harness.exists("k0", "k1", "k2", "k3") == [True, True, False, False]


def test_replicas_lie_on_different_nodes_the_preferred_one_first(harness: Harness) -> None:
    harness.join("b")
    harness.join("c")
    harness.answer_all()
    grant = harness.put("k", replicas=2, preferred="c")
    assert grant.placements[0].node == "c"
    assert len({placement.node for placement in grant.placements}) == 2


def test_an_object_lives_as_long_as_one_of_its_nodes(harness: Harness) -> None:
    harness.join("b")
    harness.answer_all()
    harness.store("k", replicas=2)
    harness.feed(p.NodeLeft("a", harness.nodes["a"].incarnation))
    assert harness.exists("k") == [True]
    harness.feed(p.NodeLeft("b", harness.nodes["b"].incarnation))
    assert harness.exists("k") == [False]
    assert harness.index == {"a": set(), "b": set()}


def test_a_new_master_knows_what_was_committed_and_only_that(harness: Harness) -> None:
    harness.store("kept")
    written = harness.put("written")
    harness.write(written)  # committed at the node, but the master never heard of it
    harness.put("reserved")
    old_term = harness.term
    harness.restart()
    assert harness.exists("kept") == [False]
    assert harness.put("early").refusal == NoSpace.code
    harness.answer_all()
    assert harness.exists("kept", "written", "reserved") == [True, True, False]
    assert harness.end(written, term=old_term) == StaleAllocation.code
    assert harness.ask(Remove(keys=["kept"])) == Removed(refusals=[ObjectLeased.code])  # an old reader may still read


def test_a_report_of_an_older_incarnation_is_dropped(harness: Harness) -> None:
    harness.store("k")
    old = harness.nodes["a"].report(0)
    harness.join("a")
    harness.feed(p.BlocksReported("a", old))
    assert harness.exists("k") == [False]


class PoolMachine(RuleBasedStateMachine):
    """Random histories."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness()
        self.writing: list[tuple[Grant, int, str]] = []
        self.leases: list[tuple[float, str, int, int, int]] = []

    @initialize()
    def begin(self) -> None:
        self.harness.join("a")
        self.harness.answer_all()

    @rule(
        key=st.sampled_from(KEYS),
        blocks=st.integers(1, 8),
        parent=st.sampled_from(["", *KEYS]),
        copies=st.integers(1, 2),
    )
    def put_start(self, key: str, blocks: int, parent: str, copies: int) -> None:
        parent = "" if parent == key else parent
        grant = self.harness.put(key, 64 * blocks, parent, copies)
        for placement in grant.placements:
            start, end = placement.offset, placement.offset + extent_bytes(key, parent, 64 * blocks)
            for until, node, incarnation, low, high in self.leases:
                same = (node, incarnation) == (placement.node, placement.incarnation)
                assert not (same and until > self.harness.now and start < high and low < end), "leased space given out"
        if grant.placements:
            self.writing.append((grant, 64 * blocks, parent))

    @rule(commit=st.booleans())
    def put_end(self, commit: bool) -> None:
        if self.writing:
            grant, size, parent = self.writing.pop(0)
            if commit:
                self.harness.write(grant, size, parent)
            self.harness.end(grant, revoke=not commit)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4))
    def get(self, keys: list[str]) -> None:
        for found in self.harness.get(*keys).objects:
            for placement in found.placements if found else ():
                end = placement.offset + found.header_bytes + found.size_bytes  # type: ignore[union-attr]
                until = self.harness.now + SETTINGS.read_lease_s
                self.leases.append((until, placement.node, placement.incarnation, placement.offset, end))

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4), force=st.booleans())
    def remove(self, keys: list[str], force: bool) -> None:
        self.harness.ask(Remove(keys=keys, force=force))

    @rule(name=st.sampled_from(NODES))
    def join(self, name: str) -> None:
        self.harness.join(name)

    @rule(name=st.sampled_from(NODES))
    def leave(self, name: str) -> None:
        node = self.harness.nodes.pop(name, None)
        if node is not None:
            self.harness.feed(p.NodeLeft(name, node.incarnation))

    @rule(lost=st.booleans())
    def answer(self, lost: bool) -> None:
        if self.harness.unanswered:
            event = self.harness.unanswered.pop(0)
            if not lost:
                self.harness.feed(event)

    @rule()
    def answer_all(self) -> None:
        self.harness.answer_all()

    @rule(seconds=st.floats(0, 12))
    def tick(self, seconds: float) -> None:
        self.harness.now += seconds
        self.harness.feed(p.Tick())

    @rule()
    def restart(self) -> None:
        self.writing.clear()
        self.leases.clear()  # the pool quarantines by itself what an old reader may read; see the tests above
        self.harness.restart()

    @invariant()
    def books_are_right(self) -> None:
        assert self.harness.pool.check() == []

    @invariant()
    def index_is_right(self) -> None:
        readable = {key for key in KEYS if self.harness.exists(key) == [True]}
        assert set().union(*self.harness.index.values(), set()) == readable

    def teardown(self) -> None:
        self.harness.settle()
        self.harness.ask(RemoveAll(force=True))
        self.harness.settle()
        assert self.harness.pool.check() == []
        for name in self.harness.nodes:
            _, used, num_objects, state = self.harness.pool.usage(name)
            assert (used, num_objects, state) == (0, 0, "ready")


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
