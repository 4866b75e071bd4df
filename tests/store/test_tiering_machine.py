"""The pool as a state machine, with tiers below its nodes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from mooncake_core.store import events as p
from mooncake_core.store.tier_events import TierAnswered
from mooncake_core.wire.messages.tiering import Prefetch
from tests.store.pool_harness import KEYS, LATE_S, SETTINGS
from tests.store.test_pool_machine import PoolMachine
from tests.store.tier_harness import TieredHarness


class TieringMachine(PoolMachine):
    """As PoolMachine; a get may be answered later, and what leaves DRAM goes to a tier."""

    harness: TieredHarness

    def __init__(self) -> None:
        super().__init__()
        self.harness = TieredHarness()

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

    @rule(name=st.sampled_from(["a", "b"]), luck=st.integers(0, 3))
    def restart_node(self, name: str, luck: int) -> None:
        if name in self.harness.nodes and not luck:
            self.harness.feed(p.NodeLeft(name, self.harness.nodes[name].incarnation))
            self.harness.join(name)

    @invariant()
    def readers_find_what_they_were_told(self) -> None:
        for got in self.harness.answers.values():
            for found in got.objects:
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
