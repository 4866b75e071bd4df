"""The pool as a state machine, with tiers below its nodes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from mooncake_core.store import events as p
from mooncake_core.store.tier_events import TierAnswered
from mooncake_core.wire.messages.pool import Remove, Removed
from mooncake_core.wire.messages.tasks import CopyObjects, DrainNode, EvictObjects, UndrainNode
from mooncake_core.wire.messages.tiering import Prefetch
from tests.store.pool_harness import KEYS, LATE_S, NODES, SETTINGS
from tests.store.test_pool_machine import PoolMachine
from tests.store.tier_harness import TieredHarness


class TieringMachine(PoolMachine):
    """As PoolMachine; a get may be answered later, what leaves DRAM goes to a tier, and objects are copied between nodes."""

    harness: TieredHarness

    def __init__(self) -> None:
        super().__init__()
        self.harness = TieredHarness()
        self.oldest: dict[str, int] = {}
        """Key → allocation id of what replaced or removed older objects: they are not to be read any more."""

    @rule(commit=st.booleans(), first_fails=st.booleans(), settled=st.booleans())
    def put_end(self, commit: bool, first_fails: bool, settled: bool) -> None:
        grant = self.writing[0].grant if self.writing else None
        replaces = grant is not None and self.harness.exists(grant.key) == [True]
        super().put_end(commit, first_fails, settled)
        if grant is not None and replaces and self.known_id(grant.key) == grant.allocation_id:
            self.oldest[grant.key] = grant.allocation_id

    def known_id(self, key: str) -> int:
        entry = self.harness.pool._index.readable(key)
        return 0 if entry is None else entry.allocation_id

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4), force=st.booleans())
    def remove(self, keys: list[str], force: bool) -> None:
        for key in keys:
            known = self.known_id(key)
            if self.harness.ask(Remove(keys=[key], force=force)) == Removed(refusals=[""]):
                self.oldest[key] = known + 1

    @rule(
        what=st.sampled_from(["join", "leave", "rejoin", "restart"]),
        name=st.sampled_from(NODES),
        luck=st.integers(0, 5),
    )
    def disturb(self, what: str, name: str, luck: int) -> None:
        """What a master remembers ends with it, and what DRAM that was away still has is trusted."""
        super().disturb(what, name, luck)
        if not luck and what in ("restart", "rejoin"):
            self.oldest.clear()

    @rule(number=st.integers(0, 100), lost=st.booleans())
    def answer(self, number: int, lost: bool) -> None:
        if self.harness.unanswered:
            event = self.harness.unanswered.pop(number % len(self.harness.unanswered))
            if isinstance(event, TierAnswered) and lost:
                event = TierAnswered(event.asked, None)
            if isinstance(event, TierAnswered) or not lost:
                self.harness.feed(event)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4))
    def get(self, keys: list[str]) -> None:
        self.harness.begin_get(*keys)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4))
    def prefetch(self, keys: list[str]) -> None:
        self.harness.ask(Prefetch(keys=keys))

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4), name=st.sampled_from(NODES), move=st.booleans())
    def copy(self, keys: list[str], name: str, move: bool) -> None:
        self.harness.ask(CopyObjects(keys=keys, target=name, move=move))

    @rule(number=st.integers(0, 100), outcome=st.sampled_from(["", "", "path_failed", "lost"]))
    def pull(self, number: int, outcome: str) -> None:
        if self.harness.pulls:
            refusal = "path_failed" if outcome == "path_failed" else ""
            self.harness.pull(number % len(self.harness.pulls), refusal, lost=outcome == "lost")

    @rule(name=st.sampled_from(NODES), back=st.sampled_from([True, True, False]))
    def drain(self, name: str, back: bool) -> None:
        self.harness.ask(UndrainNode(name=name) if back else DrainNode(name=name))

    @rule(size_bytes=st.sampled_from([0, 64 * 10]), name=st.sampled_from(NODES))
    def evict(self, size_bytes: int, name: str) -> None:
        self.harness.ask(EvictObjects(node=name, size_bytes=size_bytes))

    @rule(name=st.sampled_from(["a", "b"]), luck=st.integers(0, 3))
    def restart_node(self, name: str, luck: int) -> None:
        if name in self.harness.nodes and not luck:
            self.harness.feed(p.NodeLeft(name, self.harness.nodes[name].incarnation))
            self.harness.join(name)

    @invariant()
    def readers_find_what_they_were_told(self) -> None:
        for got in self.harness.answers.values():
            for found in got.objects:
                assert found is None or found.allocation_id >= self.oldest.get(found.key, 0), (
                    "it was replaced, or removed"
                )
                for placement in found.placements if found else ():
                    node = self.harness.nodes[placement.node]
                    stored = node.slots.get(placement.slot)
                    assert stored is None or stored.key == found.key  # type: ignore[union-attr]
                    end = placement.offset + found.header_bytes + found.size_bytes  # type: ignore[union-attr]
                    until = self.harness.now + SETTINGS.read_lease_s + LATE_S
                    self.leases.append((until, placement.node, placement.incarnation, placement.offset, end))
        self.harness.answers.clear()


TestTieringMachine = TieringMachine.TestCase
TestTieringMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
