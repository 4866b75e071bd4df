"""A node that is drained takes nothing new, loses nothing, and says when its process may be stopped."""

from __future__ import annotations

import pytest

from mooncake_core.errors import NodeNotFound
from mooncake_core.store import events as p
from mooncake_core.store.draining import LOOK_AGAIN_S, LOOKED_AT_ONCE
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.tasks import CopyObjects, DrainNode, DrainStatus, TasksStarted, UndrainNode
from tests.store.pool_harness import Harness, NodeModel
from tests.store.test_tasks import holders, work


@pytest.fixture
def pool() -> Harness:
    harness = Harness()
    for name in ("a", "b"):
        harness.join(name)
    harness.answer_all()
    return harness


def status(pool: Harness, name: str) -> DrainStatus:
    found = pool.pool.drain_of(name)
    assert found is not None
    return found


def test_what_a_drained_node_has_goes_to_others_and_nothing_new_comes(pool: Harness) -> None:
    for number in range(4):
        pool.store(f"k{number}", preferred="a")
    assert pool.ask(DrainNode(name="a")) == Done()
    assert status(pool, "a").state == "draining"
    work(pool)
    assert status(pool, "a") == DrainStatus(name="a", state="drained", objects_left=0, bytes_left=0, moved=4)
    assert [holders(pool, f"k{number}") for number in range(4)] == [["b"]] * 4
    assert [placement.node for placement in pool.put("new", preferred="a").placements] == ["b"]
    started = pool.ask(CopyObjects(keys=["k0"], target="a"))
    assert isinstance(started, TasksStarted)
    assert started.tasks[0].refusal == "node_draining"


def test_a_replica_that_another_node_has_too_just_goes(pool: Harness) -> None:
    pool.store("k", replicas=2)
    pool.ask(DrainNode(name="a"))
    assert not pool.pulls
    pool.answer_all()
    assert (status(pool, "a").state, status(pool, "a").released) == ("drained", 1)
    assert holders(pool, "k") == ["b"]


def test_two_nodes_that_are_drained_do_not_count_on_each_other(pool: Harness) -> None:
    pool.store("k", replicas=2)
    pool.ask(DrainNode(name="a"))
    pool.store("other", preferred="b")
    pool.ask(DrainNode(name="b"))
    work(pool)
    assert pool.exists("k", "other") == [True, True]
    assert (status(pool, "b").state, status(pool, "b").reason) == ("stuck", "no_space")
    pool.join("c")
    pool.answer_all()
    pool.now += LOOK_AGAIN_S
    pool.feed(p.Tick())
    work(pool)
    assert [holders(pool, key) for key in ("k", "other")] == [["c"], ["c"]]
    assert status(pool, "b").state == "drained"


def test_what_fits_nowhere_stays_and_goes_only_with_force(pool: Harness) -> None:
    for number in range(2):
        pool.store(f"b{number}", 64 * 20, preferred="b")
        pool.store(f"a{number}", 64 * 20, preferred="a")
    pool.ask(DrainNode(name="a"))
    work(pool)
    found = status(pool, "a")
    assert (found.state, found.objects_left, found.stuck, found.reason) == ("stuck", 2, 2, "no_space")
    assert pool.exists("a0", "a1", "b0", "b1") == [True] * 4
    pool.ask(DrainNode(name="a", force=True))
    work(pool)
    found = status(pool, "a")
    assert (found.state, found.dropped) == ("drained", 2)
    assert pool.exists("a0", "a1", "b0", "b1") == [False, False, True, True]


def test_with_force_nothing_goes_while_a_node_cannot_say_yet_whether_it_has_room(pool: Harness) -> None:
    pool.store("k", preferred="a")
    pool.join("c")  # not fenced yet
    pool.feed(p.NodeLeft("b", pool.nodes.pop("b").incarnation))
    pool.ask(DrainNode(name="a", force=True))
    assert pool.exists("k") == [True]
    pool.answer_all()
    pool.now += LOOK_AGAIN_S
    pool.feed(p.Tick())
    work(pool)
    assert holders(pool, "k") == ["c"]


def test_what_is_being_written_is_moved_when_it_is_whole(pool: Harness) -> None:
    grant = pool.put("k", preferred="a")
    pool.ask(DrainNode(name="a"))
    work(pool)
    assert status(pool, "a").state == "draining"
    pool.write(grant)
    assert pool.end(grant) == ""
    pool.now += LOOK_AGAIN_S
    pool.feed(p.Tick())
    work(pool)
    assert (holders(pool, "k"), status(pool, "a").state) == (["b"], "drained")


def test_it_is_drained_only_when_no_reader_can_be_there(pool: Harness) -> None:
    pool.store("k", preferred="a")
    pool.get("k")
    pool.ask(DrainNode(name="a"))
    work(pool)
    assert holders(pool, "k") == ["b"]
    assert status(pool, "a").state == "draining"
    pool.settle()
    assert status(pool, "a").state == "drained"


def test_undrain_ends_it(pool: Harness) -> None:
    pool.store("k", preferred="a")
    pool.ask(DrainNode(name="a"))
    work(pool)
    assert pool.nodes["a"].draining
    assert pool.ask(UndrainNode(name="a")) == Done()
    assert pool.pool.drain_of("a") is None
    assert [placement.node for placement in pool.put("new", preferred="a").placements] == ["a"]
    pool.answer_all()
    assert not pool.nodes["a"].draining
    assert isinstance(pool.ask(UndrainNode(name="a")), NodeNotFound)
    assert isinstance(pool.ask(DrainNode(name="z")), NodeNotFound)


def test_a_new_master_goes_on_with_it(pool: Harness) -> None:
    pool.store("k", preferred="a")
    pool.ask(DrainNode(name="a"))
    pool.answer_all()
    pool.pulls.clear()
    pool.restart()
    pool.answer_all()
    assert [placement.node for placement in pool.put("new", preferred="a").placements] == ["b"]
    assert status(pool, "a").state == "draining", "the other node had not reported yet"
    pool.now += LOOK_AGAIN_S
    pool.feed(p.Tick())
    work(pool)
    assert holders(pool, "k") == ["b"]
    pool.settle()
    assert status(pool, "a").state == "drained"


def test_a_node_that_was_away_is_drained_still_and_one_that_is_new_is_not(pool: Harness) -> None:
    pool.store("k", preferred="a")
    pool.ask(DrainNode(name="a"))
    node = pool.nodes["a"]
    pool.feed(p.NodeLeft("a", node.incarnation))
    node.draining = False  # it was not told yet
    pool.feed(p.NodeJoined("a", node.incarnation, node.offer()))
    pool.answer_all()
    work(pool)
    assert holders(pool, "k") == ["b"]
    pool.feed(p.NodeLeft("a", node.incarnation))
    pool.join("a")
    pool.answer_all()
    assert pool.pool.drain_of("a") is None
    assert [placement.node for placement in pool.put("new", preferred="a").placements] == ["a"]


def test_many_objects_are_looked_at_in_parts() -> None:
    harness = Harness()
    for name in ("a", "b"):
        node = NodeModel(name, next(harness.incarnations), capacity=1 << 20, num_slots=4 * LOOKED_AT_ONCE)
        harness.nodes[name] = node
        harness.feed(p.NodeJoined(name, node.incarnation, node.offer()))
    while harness.unanswered:
        harness.answer_all()
    count = 2 * LOOKED_AT_ONCE + 1
    for number in range(count):
        harness.store(f"k{number}", replicas=2)
    commands = harness.feed(p.Tick())
    harness.ask(DrainNode(name="a"))
    parts = 0
    while status(harness, "a").objects_left:
        assert harness.pool.next_deadline() is not None
        commands = harness.feed(p.Tick())
        assert sum(len(command.keys) for command in commands if isinstance(command, p.BlocksRemoved)) <= LOOKED_AT_ONCE
        parts += 1
    assert parts == 2
    assert status(harness, "a").released == count
