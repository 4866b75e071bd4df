"""Rounds of eviction: how far they go at once, and what is said when they get nowhere."""

from __future__ import annotations

import logging

import pytest

from mooncake_core.errors import NoSpace
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.store import events as p
from mooncake_core.store.evicting import STEP_OBJECTS
from mooncake_core.store.evictions import LFU, LengthAware
from mooncake_core.wire.messages.pool import Remove
from tests.store.pool_harness import Harness, NodeModel

BLOCK = 64 * 4


def told(commands: list[p.Command]) -> list[p.Command]:
    return [command for command in commands if isinstance(command, p.EvictionStalled | p.EvictionGoesOn)]


def put_start(harness: Harness, key: str, size: int) -> list[p.Command]:
    """What people are told because of a put that is then given up."""
    commands: list[p.Command] = []
    feed = harness.feed

    def listen(event: p.Event) -> list[p.Command]:
        found = feed(event)
        commands.extend(told(found))
        return found

    harness.feed = listen  # type: ignore[method-assign]
    grant = harness.put(key, size)
    if grant.placements:
        harness.end(grant, revoke=True)
        harness.answer_all()
    del harness.feed  # type: ignore[method-assign]
    return commands


def fill(harness: Harness) -> list[str]:
    """Objects to just above the high watermark, all under lease."""
    keys = [f"k{number}" for number in range(9)]
    for key in keys:
        harness.store(key, BLOCK)
        harness.get(key)
    return keys


def test_rounds_and_bytes_are_counted(harness: Harness) -> None:
    for number in range(8):
        harness.store(f"k{number}", BLOCK)
    assert harness.pool.report(harness.now).eviction_rounds == 0
    before = harness.pool.usage("a")[1]
    harness.put("more", BLOCK * 2)
    report = harness.pool.report(harness.now)
    assert (report.eviction_rounds, report.stalled_rounds, report.stalled_nodes) == (1, 0, [])
    assert report.evicted > 0
    extent = before // 8
    assert report.evicted_bytes == report.evicted * extent


def test_a_node_that_is_full_of_what_must_stay_is_named_once(harness: Harness) -> None:
    keys = fill(harness)
    size = harness.nodes["a"].capacity
    (stalled,) = put_start(harness, "x", BLOCK * 2)
    assert isinstance(stalled, p.EvictionStalled)
    assert stalled.node == "a"
    assert 0.8 * size < stalled.live_bytes <= stalled.capacity_bytes == size
    assert put_start(harness, "x", BLOCK * 2) == []
    report = harness.pool.report(harness.now)
    assert report.stalled_nodes == ["a"]
    assert report.stalled_rounds == 2
    assert harness.exists(*keys) == [True] * len(keys)


def test_when_leases_have_ended_it_is_said_that_eviction_goes_on(harness: Harness) -> None:
    fill(harness)
    put_start(harness, "x", BLOCK * 2)
    harness.now += 60
    assert put_start(harness, "x", BLOCK * 2) == [p.EvictionGoesOn("a")]
    report = harness.pool.report(harness.now)
    assert report.stalled_nodes == []
    assert report.evicted > 0


def test_when_objects_were_removed_it_is_said_that_there_is_room(harness: Harness) -> None:
    keys = fill(harness)
    put_start(harness, "x", BLOCK * 2)
    token = next(harness.tokens)
    assert told(harness.feed(p.Asked(token, Remove(keys=keys[:6], force=True)))) == [p.EvictionGoesOn("a")]
    assert harness.pool.report(harness.now).stalled_nodes == []


def test_a_node_whose_slots_are_full_of_what_must_stay_is_named_too(harness: Harness) -> None:
    for number in range(12):
        harness.store(f"k{number}", 8)
        harness.get(f"k{number}")
    assert [type(command) for command in put_start(harness, "x", 8)] == [p.EvictionStalled]


def test_waiting_for_space_that_is_being_cleared_is_no_stall(harness: Harness) -> None:
    for number in range(12):
        harness.store(f"k{number}", 8)
    assert harness.put("x", 8).refusal == NoSpace.code
    for _ in range(20):
        assert put_start(harness, "x", 8) == []
    assert harness.pool.report(harness.now).stalled_rounds == 0


def test_a_stalled_node_that_leaves_is_forgotten(harness: Harness) -> None:
    fill(harness)
    put_start(harness, "x", BLOCK * 2)
    harness.feed(p.NodeLeft("a", harness.nodes["a"].incarnation))
    assert harness.pool.report(harness.now).stalled_nodes == []


def join_large(harness: Harness, name: str) -> None:
    """A node with room for 1000 objects gets 800, which is as much as it may have."""
    node = NodeModel(name, next(harness.incarnations), capacity=128 * 1000, num_slots=2000)
    harness.nodes[name] = node
    harness.feed(p.NodeJoined(name, node.incarnation, node.offer()))
    harness.answer_all()
    for number in range(800):
        harness.store(f"{name}{number}", preferred=name)
    assert harness.pool.usage(name)[1] == 128 * 800


@pytest.fixture
def crowd() -> Harness:
    """One that is as full as it may be."""
    harness = Harness()
    join_large(harness, "a")
    return harness


def is_due(harness: Harness) -> bool:
    deadline = harness.pool.next_deadline()
    return deadline is not None and deadline <= harness.now


def test_a_long_round_lets_others_have_their_turn(crowd: Harness) -> None:
    crowd.end(crowd.put("more", 64 * 3))
    assert crowd.pool.report(crowd.now).evicted == STEP_OBJECTS
    assert is_due(crowd)
    crowd.feed(p.Tick())
    assert crowd.pool.report(crowd.now).evicted == STEP_OBJECTS  # still the same turn
    crowd.now += 0.001
    assert is_due(crowd)
    crowd.feed(p.Tick())
    report = crowd.pool.report(crowd.now)
    assert (report.eviction_rounds, report.evicted) == (1, 302)
    assert not is_due(crowd)


def test_rounds_of_several_nodes_share_a_turn(crowd: Harness) -> None:
    join_large(crowd, "b")
    for name in "ab":
        crowd.end(crowd.put(f"more {name}", 64 * 3, preferred=name))
    assert crowd.pool.report(crowd.now).evicted == STEP_OBJECTS
    turns = 1
    while is_due(crowd):
        crowd.now += 0.001
        crowd.feed(p.Tick())
        turns += 1
    report = crowd.pool.report(crowd.now)
    assert (turns, report.eviction_rounds, report.evicted) == (3, 2, 604)


def test_a_round_at_a_node_that_leaves_ends(crowd: Harness) -> None:
    crowd.end(crowd.put("more", 64 * 3))
    assert is_due(crowd)
    crowd.feed(p.NodeLeft("a", crowd.nodes["a"].incarnation))
    crowd.feed(p.Tick())
    assert not is_due(crowd)


def test_the_rest_of_a_chain_goes_when_its_tail_was_removed(harness: Harness) -> None:
    harness.store("head", 64 * 20)
    harness.store("tail", 64, parent="head")
    harness.get("tail")
    put_start(harness, "huge", 64 * 50)
    assert harness.exists("head", "tail") == [True, True]
    harness.ask(Remove(keys=["tail"], force=True))
    put_start(harness, "huge", 64 * 50)
    assert harness.exists("head") == [False]


def test_positions_in_a_chain_reach_the_policy() -> None:
    harness = Harness(policy=LengthAware)
    harness.join("a")
    harness.answer_all()
    for key, parent in (
        ("a0", ""),
        ("b0", ""),
        ("a1", "a0"),
        ("a2", "a1"),
        ("b1", "b0"),
        ("c1", "unknown"),
        ("c2", "c1"),
    ):
        harness.store(key, BLOCK, parent=parent)
    harness.now += 60
    harness.put("more", 64 * 13)
    assert [key for key in ("a0", "b0", "a1", "a2", "b1", "c1", "c2") if harness.exists(key) == [True]] == [
        "a0",
        "b0",
        "c1",
    ]


def test_another_policy_keeps_something_else() -> None:
    harness = Harness(policy=LFU)
    harness.join("a")
    harness.answer_all()
    for number in range(8):
        harness.store(f"k{number}", BLOCK)
    for _ in range(3):
        harness.get("k0")
    for number in range(1, 8):
        harness.get(f"k{number}")
    harness.now += 60
    harness.put("more", 64 * 20)
    assert harness.exists("k0", "k1", "k2") == [True, False, False]


async def test_people_are_told_in_words(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    driver = PoolDriver(harness.pool, term=1, node_client=lambda name: None, on_change=lambda change: None)
    with caplog.at_level(logging.INFO):
        driver._execute(p.EvictionStalled("a", 3 << 30, 4 << 30))
        driver._execute(p.EvictionGoesOn("a"))
    await driver.close()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "node a is full (3GiB of 4GiB) and nothing there may be evicted" in caplog.text
    assert "node a can make room again" in caplog.text
