"""The pool as a state machine: whatever happens, the books are right and nobody's bytes are overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mooncake_core.store import events as p
from mooncake_core.store.layout import extent_bytes
from mooncake_core.wire.messages.objects import RemoveReplicas
from mooncake_core.wire.messages.pool import (
    Grant,
    Remove,
    RemoveAll,
)
from tests.store.pool_harness import KEYS, LATE_S, NODES, SETTINGS, Harness


@dataclass
class Writer:
    """Somebody who was granted space, and may still write there."""

    grant: Grant
    size: int
    parent: str
    granted_at: float
    until: float = float("inf")
    nodes: Sequence[str] = tuple(NODES)
    """Where it may still write."""
    doomed: bool = False

    def ranges(self) -> Iterator[tuple[str, int, int]]:
        for placement in self.grant.placements:
            length = extent_bytes(self.grant.key, self.parent, self.size)
            if placement.node in self.nodes:
                yield placement.node, placement.offset, placement.offset + length


class PoolMachine(RuleBasedStateMachine):
    """Random histories: answers are late, lost, and out of order; writers are late, or never heard of again."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness()
        self.writing: list[Writer] = []
        self.late: list[Writer] = []
        """They said that they have given up without knowing what became of their writes, or say nothing ever more."""
        self.leases: list[tuple[float, str, int, int, int]] = []

    @initialize()
    def begin(self) -> None:
        self.harness.join("a")
        self.harness.join("b")
        self.harness.answer_all()

    @rule(
        key=st.sampled_from(KEYS),
        blocks=st.integers(4, 16),
        parent=st.sampled_from(["", *KEYS]),
        copies=st.integers(1, 2),
        options=st.fixed_dictionaries(
            {"upsert": st.booleans(), "group": st.sampled_from(["", "", "g", "h"])},
            optional={"soft_pin_s": st.sampled_from([0.0, 4.0]), "hard_pin": st.booleans()},
        ),
    )
    def put_start(self, key: str, blocks: int, parent: str, copies: int, options: dict[str, Any]) -> None:
        parent = "" if parent == key else parent
        grant = self.harness.put(key, 64 * blocks, parent, copies, **options)
        if not grant.placements:
            return
        writer = Writer(grant, 64 * blocks, parent, self.harness.now)
        for name, low, high in writer.ranges():
            assert self.harness.can_write(grant, name), "it was told a descriptor that is withdrawn"
            self.is_nobodys(name, low, high)
        self.writing.append(writer)

    def is_nobodys(self, name: str, low: int, high: int) -> None:
        incarnation = self.harness.nodes[name].incarnation
        for until, node, of, start, end in self.leases:
            same = (node, of) == (name, incarnation) and until > self.harness.now
            assert not (same and start < high and low < end), "leased space given out"
        for writer in [*self.writing, *self.late]:
            for node, start, end in writer.ranges():
                same = node == name and writer.until > self.harness.now
                alive = same and self.harness.can_write(writer.grant, node)
                assert not (alive and start < high and low < end), "space given out that somebody can write to"

    @rule(commit=st.booleans(), first_fails=st.booleans(), settled=st.booleans())
    def put_end(self, commit: bool, first_fails: bool, settled: bool) -> None:
        if not self.writing:
            return
        writer = self.writing.pop(0)
        names = [name for name, _, _ in writer.ranges()]
        good = [name for name in names if self.harness.can_write(writer.grant, name)][first_fails:]
        given_up = [name for name in names if not commit or name not in good]
        if commit and good:
            self.harness.write(writer.grant, writer.size, writer.parent, good)
        if given_up and not settled:
            self.late.append(writer)
            writer.nodes = given_up
            writer.until = writer.granted_at + SETTINGS.writer_deadline_s + LATE_S
        code = self.harness.end(
            writer.grant,
            revoke=not (commit and good),
            nodes=good,
            settled=names if settled else [name for name in names if name not in given_up],
        )
        assert not (writer.doomed and commit and good and code == ""), "it was committed after all were removed"

    @rule()
    def fall_silent(self) -> None:
        if self.writing:
            self.late.append(self.writing.pop(0))

    @rule(number=st.integers(0, 100))
    def write_late(self, number: int) -> None:
        if self.late:
            writer = self.late[number % len(self.late)]
            if writer.until > self.harness.now:
                self.harness.write(writer.grant, writer.size, writer.parent, writer.nodes)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4))
    def get(self, keys: list[str]) -> None:
        for found in self.harness.get(*keys).objects:
            for placement in found.placements if found else ():
                end = placement.offset + found.header_bytes + found.size_bytes  # type: ignore[union-attr]
                until = self.harness.now + SETTINGS.read_lease_s + LATE_S
                self.leases.append((until, placement.node, placement.incarnation, placement.offset, end))

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4), hard=st.booleans(), soft_s=st.sampled_from([0.0, 4.0]))
    def pin(self, keys: list[str], hard: bool, soft_s: float) -> None:
        self.harness.pin(*keys, hard=hard, soft_s=soft_s)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4), force=st.booleans())
    def remove(self, keys: list[str], force: bool) -> None:
        self.harness.ask(Remove(keys=keys, force=force))

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4), node=st.sampled_from(NODES))
    def remove_from(self, keys: list[str], node: str) -> None:
        self.harness.ask(RemoveReplicas(keys=keys, node=node))

    @rule()
    def remove_all(self) -> None:
        self.harness.ask(RemoveAll(force=True))
        assert not any(self.harness.exists(*KEYS))
        for writer in self.writing:
            writer.doomed = True

    @rule(
        what=st.sampled_from(["join", "leave", "rejoin", "restart"]),
        name=st.sampled_from(NODES),
        luck=st.integers(0, 5),
    )
    def disturb(self, what: str, name: str, luck: int) -> None:
        """Seldom: space that is taken from the beginning every time is never in short supply."""
        node = self.harness.nodes.get(name)
        if luck:
            return
        if what == "restart":
            self.late += self.writing
            self.writing.clear()
            self.harness.restart()
        elif what == "join":
            self.harness.join(name)
        elif node is not None:
            self.harness.feed(p.NodeLeft(name, node.incarnation))
            if what == "rejoin":
                self.harness.feed(p.NodeJoined(name, node.incarnation, node.offer()))
            else:
                del self.harness.nodes[name]

    @rule(number=st.integers(0, 100), lost=st.booleans())
    def answer(self, number: int, lost: bool) -> None:
        if self.harness.unanswered:
            event = self.harness.unanswered.pop(number % len(self.harness.unanswered))
            if not lost:
                self.harness.feed(event)

    @rule()
    def answer_all(self) -> None:
        self.harness.answer_all()

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.5, 11.5]))
    def tick(self, seconds: float) -> None:
        self.harness.now += seconds
        self.harness.feed(p.Tick())

    @invariant()
    def books_are_right(self) -> None:
        assert self.harness.pool.check() == []

    @invariant()
    def index_is_right(self) -> None:
        objects = [entry for key in KEYS if (entry := self.harness.pool._index.readable(key)) is not None]
        for name in self.harness.nodes:
            held = {entry.key: tier for entry in objects if (tier := entry.tier_on(name)) is not None}
            assert self.harness.index.get(name, {}) == held
        assert set().union(*self.harness.index.values(), set()) == {entry.key for entry in objects}

    def teardown(self) -> None:
        self.harness.settle()
        self.harness.ask(RemoveAll(force=True))
        self.harness.settle()
        assert self.harness.pool.check() == []
        for name in self.harness.nodes:
            _, used, num_objects, state = self.harness.pool.usage(name)
            assert (used, num_objects, state) == (0, 0, "ready")


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
