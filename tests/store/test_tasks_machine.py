"""Copies, moves and drains as a state machine: whoever dies, whatever is late or lost, no object is lost by them."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mooncake_core.store import events as p
from mooncake_core.wire.messages.objects import RemoveReplicas
from mooncake_core.wire.messages.pool import Remove, RemoveAll, Removed
from mooncake_core.wire.messages.tasks import (
    CancelTasks,
    CopyObjects,
    DrainNode,
    QueryTasks,
    TaskReport,
    UndrainNode,
)
from tests.store.pool_harness import KEYS, NODES, Harness, NodeModel


class TasksMachine(RuleBasedStateMachine):
    """There is room for all: nothing is evicted, so what was put and not removed is there while a node lives that has it."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness()
        self.expected: set[str] = set()

    @initialize()
    def begin(self) -> None:
        for name in NODES:
            self.join(name)
        self.harness.answer_all()

    def join(self, name: str) -> None:
        node = NodeModel(name, next(self.harness.incarnations), capacity=64 * 600, num_slots=60)
        self.harness.nodes[name] = node
        self.harness.feed(p.NodeJoined(name, node.incarnation, node.offer()))

    @rule(key=st.sampled_from(KEYS), copies=st.integers(1, 2), node=st.sampled_from(NODES), silent=st.integers(0, 5))
    def put(self, key: str, copies: int, node: str, silent: int) -> None:
        grant = self.harness.put(key, replicas=copies, preferred=node)
        if not grant.placements or not silent:  # a writer that is never heard of again makes the pool fence its nodes
            return
        good = [place.node for place in grant.placements if self.harness.can_write(grant, place.node)]
        self.harness.write(grant, nodes=good)
        if self.harness.end(grant, revoke=not good, nodes=good) == "" and good:
            self.expected.add(key)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4), name=st.sampled_from(NODES), move=st.booleans())
    def copy(self, keys: list[str], name: str, move: bool) -> None:
        self.harness.ask(CopyObjects(keys=keys, target=name, move=move))

    @rule(number=st.integers(0, 100))
    def cancel(self, number: int) -> None:
        report = self.harness.ask(QueryTasks())
        assert isinstance(report, TaskReport)
        if report.tasks:
            self.harness.ask(CancelTasks(task_ids=[report.tasks[number % len(report.tasks)].task_id]))

    @rule(name=st.sampled_from(NODES), back=st.booleans())
    def drain(self, name: str, back: bool) -> None:
        self.harness.ask(UndrainNode(name=name) if back else DrainNode(name=name))

    @rule(key=st.sampled_from(KEYS), force=st.booleans())
    def remove(self, key: str, force: bool) -> None:
        removed = self.harness.ask(Remove(keys=[key], force=force))
        if removed.refusals == [""]:  # type: ignore[attr-defined]
            self.expected.discard(key)

    @rule(key=st.sampled_from(KEYS), node=st.sampled_from(NODES))
    def remove_from(self, key: str, node: str) -> None:
        found = self.harness.describe(key)
        removed = self.harness.ask(RemoveReplicas(keys=[key], node=node))
        if removed == Removed(refusals=[""]):
            left = {place.node for place in found.replicas} - {node}  # type: ignore[union-attr]
            assert self.harness.exists(key) == [bool(left)]
            self.expected -= set() if left else {key}

    @rule(key=st.sampled_from(KEYS))
    def read(self, key: str) -> None:
        self.harness.get(key)

    @rule(what=st.sampled_from(["kill", "silence", "restart"]), name=st.sampled_from(NODES), luck=st.integers(0, 2))
    def disturb(self, what: str, name: str, luck: int) -> None:
        node = self.harness.nodes[name]
        if luck:
            return
        if what == "restart":
            self.harness.restart()
            return
        self.harness.feed(p.NodeLeft(name, node.incarnation))
        if what == "silence":
            self.harness.feed(p.NodeJoined(name, node.incarnation, node.offer()))
            return
        had = {stored.key for stored in node.slots.values()}
        self.expected -= {key for key in had if self.harness.exists(key) == [False]}
        self.join(name)

    @rule(number=st.integers(0, 100), outcome=st.sampled_from(["", "", "", "path_failed", "lost"]))
    def pull(self, number: int, outcome: str) -> None:
        if self.harness.pulls:
            refusal = "path_failed" if outcome == "path_failed" else ""
            self.harness.pull(number % len(self.harness.pulls), refusal, lost=outcome == "lost")

    @rule(number=st.integers(0, 100), lost=st.booleans())
    def answer(self, number: int, lost: bool) -> None:
        if self.harness.unanswered:
            event = self.harness.unanswered.pop(number % len(self.harness.unanswered))
            if not lost:
                self.harness.feed(event)

    @rule()
    def answer_all(self) -> None:
        self.harness.answer_all()

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.5, 16.0]))
    def tick(self, seconds: float) -> None:
        self.harness.now += seconds
        self.harness.feed(p.Tick())

    @invariant()
    def books_are_right(self) -> None:
        assert self.harness.pool.check() == []

    @invariant()
    def every_known_replica_is_there(self) -> None:
        for key, name, slot, offset, allocation_id in self.replicas():
            stored = self.harness.nodes[name].slots.get(slot)
            assert stored is not None, f"{key} is not on {name}"
            assert (stored.key, stored.offset, stored.allocation_id) == (key, offset, allocation_id)
            assert not stored.removed

    @invariant()
    def nothing_lies_in_free_slots(self) -> None:
        for name, space in self.harness.pool._nodes.items():
            node = self.harness.nodes[name]
            if space.incarnation == node.incarnation and space.ready:
                assert not node.slots.keys() & set(space._free_slots), "a late copy came into space that is free"

    def replicas(self) -> list[tuple[str, str, int, int, int]]:
        """(key, node, slot, offset, allocation id), read without taking a lease."""
        entries = list(self.harness.pool._index.all_readable())
        return [
            (entry.key, name, extent.slot, extent.offset, extent.allocation_id)
            for entry in entries
            for name, extent in entry.replicas.items()
        ]

    def teardown(self) -> None:
        for _ in range(8):
            while self.harness.pulls or self.harness.unanswered:
                while self.harness.pulls:
                    self.harness.pull()
                self.harness.answer_all()
            self.harness.now += 20
            self.harness.feed(p.Tick())
        self.every_known_replica_is_there()
        assert {key for key in KEYS if self.harness.exists(key) == [True]} >= self.expected
        self.harness.ask(RemoveAll(force=True))
        self.harness.settle()
        assert self.harness.pool.check() == []
        assert [self.harness.pool.usage(name)[1:] for name in NODES] == [(0, 0, "ready")] * len(NODES)


TestTasksMachine = TasksMachine.TestCase
TestTasksMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
