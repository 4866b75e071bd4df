"""Transfers that share NICs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mooncake_core.sim.network import Network
from mooncake_core.sim.timeline import Timeline


class Arrivals:
    """A network of 10 bytes per second and node, and when its transfers have arrived."""

    def __init__(self, *nodes: str) -> None:
        self.timeline = Timeline()
        self.network = Network(self.timeline)
        self.at: dict[str, float] = {}
        for node in nodes:
            self.network.add_node(node, 10.0)

    def note(self, name: str) -> Callable[[], None]:
        def arrived() -> None:
            self.at[name] = self.timeline.now

        return arrived

    def start(self, name: str, source: str, target: str, size: float, cap: float = float("inf")) -> None:
        self.network.start(source, target, size, self.note(name), cap=cap)


def test_a_lone_transfer_has_the_whole_nic() -> None:
    run = Arrivals("a", "b")
    run.start("one", "a", "b", 100)
    run.timeline.run()
    assert run.at == {"one": 10.0}


def test_directions_do_not_share() -> None:
    run = Arrivals("a", "b")
    run.start("there", "a", "b", 100)
    run.start("back", "b", "a", 100)
    run.timeline.run()
    assert run.at == {"there": 10.0, "back": 10.0}


def test_a_second_transfer_halves_the_first_from_then_on() -> None:
    run = Arrivals("a", "b", "c")
    run.start("one", "a", "b", 100)
    run.timeline.at(5.0, run.start, "two", "a", "c", 100)
    run.timeline.run()
    # one: 50 bytes in 5 s, 50 at 5 B/s: 15 s. two: 50 bytes until then, 50 at 10 B/s: 20 s.
    assert run.at == {"one": 15.0, "two": 20.0}


def test_what_a_capped_transfer_leaves_the_others_take() -> None:
    run = Arrivals("a", "b", "c")
    run.start("slow", "a", "b", 20, cap=2.0)
    run.start("fast", "a", "c", 80)
    run.timeline.run()
    assert run.at == {"slow": 10.0, "fast": 10.0}


def test_shares_are_max_min_fair_over_all_nics() -> None:
    """d receives from a, b and c; a sends to d and to e: a to d has a third of d's NIC, and the rest of a's goes to e."""
    run = Arrivals("a", "b", "c", "d", "e")
    for source in "abc":
        run.start(f"{source}d", source, "d", 100)
    run.start("ae", "a", "e", 200)
    run.timeline.run(until=1.0)
    assert run.network.utilisation("a") == pytest.approx(1.0)
    assert run.network.utilisation("b") == pytest.approx(1 / 3)
    run.timeline.run()
    assert run.at["ad"] == run.at["bd"] == run.at["cd"] == pytest.approx(30.0)
    assert run.at["ae"] == pytest.approx(30.0)  # 200 bytes at 20/3 B/s


def test_a_transfer_given_up_frees_its_share_and_never_arrives() -> None:
    run = Arrivals("a", "b")
    flow = run.network.start("a", "b", 100, run.note("given up"))
    run.start("one", "a", "b", 100)
    run.timeline.at(10.0, run.network.stop, flow)
    run.timeline.run()
    assert run.at == {"one": 15.0}
    run.network.stop(flow)  # again: nothing happens
