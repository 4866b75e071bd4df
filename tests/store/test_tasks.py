"""Copies and moves: nothing is lost, whoever dies, and nothing is known before it is there."""

from __future__ import annotations

import pytest

from mooncake_core.store import events as p
from mooncake_core.store.tasks import ANSWER_S, ATTEMPTS, AWAY_S, PULLS_PER_NODE, RETRY_S, TASK_DEADLINE_S
from mooncake_core.wire.messages.objects import RemoveReplicas
from mooncake_core.wire.messages.pool import Remove, Removed
from mooncake_core.wire.messages.tasks import (
    CancelTasks,
    CopyObjects,
    Evicted,
    EvictObjects,
    QueryTasks,
    ReplicateObjects,
    StartedTask,
    TaskReport,
    TasksCancelled,
    TasksStarted,
    TaskStatus,
)
from tests.store.pool_harness import Harness, NodeModel


@pytest.fixture
def pool() -> Harness:
    harness = Harness()
    for name in ("a", "b", "c"):
        harness.join(name)
    harness.answer_all()
    return harness


def copy(pool: Harness, *keys: str, target: str, source: str = "", move: bool = False) -> list[StartedTask]:
    started = pool.ask(CopyObjects(keys=list(keys), target=target, source=source, move=move))
    assert isinstance(started, TasksStarted)
    return started.tasks


def states(pool: Harness, *task_ids: int) -> list[TaskStatus]:
    report = pool.ask(QueryTasks(task_ids=list(task_ids)))
    assert isinstance(report, TaskReport)
    return report.tasks


def state(pool: Harness, task: StartedTask) -> tuple[str, str]:
    (status,) = states(pool, task.task_id)
    return status.state, status.reason


def holders(pool: Harness, key: str) -> list[str]:
    """Where the pool says that a key is; each node's directory must agree."""
    (found,) = pool.get(key).objects
    for placement in found.placements if found else ():
        stored = pool.nodes[placement.node].slots[placement.slot]
        assert (stored.key, stored.offset, stored.removed) == (key, placement.offset, False)
    return sorted(placement.node for placement in found.placements) if found else []


def work(pool: Harness) -> None:
    """Nodes do all that they are asked."""
    while pool.pulls or pool.unanswered:
        while pool.pulls:
            pool.pull()
        pool.answer_all()


def test_a_copy_is_known_when_the_target_has_it(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b")
    assert state(pool, task) == ("running", "")
    assert holders(pool, "k") == ["a"]
    pool.pull()
    assert holders(pool, "k") == ["a"], "the master has not heard of it"
    pool.answer_all()
    assert state(pool, task) == ("done", "")
    assert holders(pool, "k") == ["a", "b"]
    assert pool.pool.check() == []


def test_a_move_frees_the_source_only_when_the_target_has_the_object(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b", source="a", move=True)
    assert len(pool.nodes["a"].slots) == 1
    work(pool)
    assert state(pool, task) == ("done", "")
    assert holders(pool, "k") == ["b"]
    assert not pool.nodes["a"].slots
    assert pool.pool.usage("a")[1] == 0


def test_a_move_leaves_the_source_to_its_readers_until_their_lease_ends(pool: Harness) -> None:
    pool.store("k", preferred="a")
    pool.get("k")
    copy(pool, "k", target="b", source="a", move=True)
    work(pool)
    assert pool.nodes["a"].slots[0].removed
    assert pool.pool.usage("a")[1] > 0
    pool.settle()
    assert pool.pool.usage("a")[1] == 0


def test_what_is_copied_is_neither_evicted_nor_removed_without_force(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b")
    assert pool.ask(EvictObjects(node="a")) == Evicted(objects=0, size_bytes=0)
    assert pool.ask(Remove(keys=["k"])) == Removed(refusals=["object_leased"])
    assert pool.ask(Remove(keys=["k"], force=True)) == Removed(refusals=[""])
    assert state(pool, task) == ("failed", "object_not_found")
    work(pool)
    assert holders(pool, "k") == []
    assert not pool.nodes["b"].slots, "what was removed must not come back"
    pool.settle()
    assert pool.pool.usage("b")[1] == 0


def test_what_is_copied_is_removed_from_no_node(pool: Harness) -> None:
    pool.store("k", preferred="a")
    copy(pool, "k", target="b")
    assert pool.ask(RemoveReplicas(keys=["k"], node="a")) == Removed(refusals=["object_leased"])
    work(pool)
    assert pool.ask(RemoveReplicas(keys=["k"], node="a")) == Removed(refusals=[""])
    assert holders(pool, "k") == ["b"]


def test_a_copy_that_fails_is_tried_again_a_few_times_and_then_given_up(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b")
    for attempt in range(1, ATTEMPTS + 1):
        assert [status.attempts for status in states(pool, task.task_id)] == [attempt]
        pool.pull(refusal="path_failed")
        pool.answer_all()
        pool.now += attempt
        pool.feed(p.Tick())
    assert state(pool, task) == ("failed", "path_failed")
    pool.answer_all()
    assert pool.pool.usage("b")[1] == 0
    assert pool.ask(Remove(keys=["k"])) == Removed(refusals=[""]), "nothing protects it any more"


def test_an_answer_that_was_lost_is_asked_for_again(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b")
    pool.pull(lost=True)
    pool.now += ANSWER_S
    pool.feed(p.Tick())
    work(pool)
    assert state(pool, task) == ("done", "")
    assert len(pool.nodes["b"].slots) == 1
    assert holders(pool, "k") == ["a", "b"]


def test_when_the_source_dies_another_replica_is_copied(pool: Harness) -> None:
    pool.store("k", replicas=2, preferred="a")
    other = next(name for name in holders(pool, "k") if name != "a")
    target = next(name for name in "bc" if name != other)
    (task,) = copy(pool, "k", target=target, source="a")
    leave(pool, "a")
    pool.now += 1
    pool.feed(p.Tick())
    assert [wanted.source.owner for _, _, wanted in pool.pulls] == ["a", other]
    work(pool)
    assert state(pool, task) == ("done", "")
    assert holders(pool, "k") == sorted([other, target])


def test_when_the_only_source_dies_the_copy_fails(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b")
    leave(pool, "a")
    assert state(pool, task) == ("failed", "object_not_found")
    work(pool)
    pool.settle()
    assert not pool.nodes["b"].slots


def test_when_the_target_dies_the_copy_waits_for_it_to_come_back(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b", source="a", move=True)
    pool.pull(lost=True)
    leave(pool, "b")
    assert state(pool, task) == ("pending", "node_not_found")
    assert holders(pool, "k") == ["a"]
    pool.join("b")
    pool.answer_all()
    pool.now += 1
    pool.feed(p.Tick())
    work(pool)
    assert (state(pool, task), holders(pool, "k")) == (("done", ""), ["b"])


def test_a_target_that_comes_back_with_the_copy_needs_no_other_one(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b", source="a", move=True)
    pool.pull(lost=True)
    node = pool.nodes["b"]
    pool.feed(p.NodeLeft("b", node.incarnation))
    pool.feed(p.NodeJoined("b", node.incarnation, node.offer()))
    pool.answer_all()
    pool.now += 1
    pool.feed(p.Tick())
    assert not pool.pulls
    assert (state(pool, task), holders(pool, "k")) == (("done", ""), ["b"])


@pytest.mark.parametrize("pulled", [False, True])
def test_a_new_master_finds_the_object_before_and_after_the_copy(pool: Harness, pulled: bool) -> None:
    pool.store("k", preferred="a")
    copy(pool, "k", target="b", source="a", move=True)
    if pulled:
        pool.pull()
    pool.restart()
    pool.answer_all()
    work(pool)
    assert holders(pool, "k") == (["a", "b"] if pulled else ["a"])
    assert len(pool.nodes["b"].slots) == (1 if pulled else 0), "a fence ends the pulls of the old term"


def test_a_copy_can_be_cancelled_and_its_space_is_free_again(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b")
    assert pool.ask(CancelTasks(task_ids=[task.task_id, 99])) == TasksCancelled(refusals=["", "task_not_found"])
    assert state(pool, task) == ("cancelled", "")
    work(pool)
    assert holders(pool, "k") == ["a"]
    assert not pool.nodes["b"].slots
    assert pool.pool.usage("b")[1] == 0


def test_refusals_say_why(pool: Harness) -> None:
    pool.store("k", preferred="a")
    assert [task.refusal for task in copy(pool, "k", "none", target="b")] == ["", "object_not_found"]
    assert [task.refusal for task in copy(pool, "k", target="b")] == ["object_exists"], "it is on its way"
    assert [task.refusal for task in copy(pool, "k", target="a")] == ["object_exists"]
    assert [task.refusal for task in copy(pool, "k", target="z")] == ["node_not_found"]
    assert [task.refusal for task in copy(pool, "k", target="c", source="b")] == ["object_not_found"]


def test_a_full_target_fails_the_copy_and_evicts_nothing(pool: Harness) -> None:
    for key in ("big0", "big1"):
        pool.store(key, 64 * 22, preferred="b")
    pool.store("k", 64 * 22, preferred="a")
    (task,) = copy(pool, "k", target="b")
    assert state(pool, task) == ("failed", "no_space")
    assert pool.exists("big0", "big1") == [True, True]


def test_a_target_that_does_not_come_back_soon_fails_the_copy(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b")
    leave(pool, "b")
    began = pool.now
    while state(pool, task)[0] == "pending":
        pool.now += RETRY_S
        pool.feed(p.Tick())
    assert state(pool, task) == ("failed", "node_not_found")
    assert AWAY_S <= pool.now - began <= AWAY_S + 2 * RETRY_S


def test_a_target_that_is_there_and_never_ready_fails_the_copy_in_the_end(pool: Harness) -> None:
    pool.store("k", preferred="a")
    (task,) = copy(pool, "k", target="b")
    leave(pool, "b")
    pool.join("b")  # and it does not answer
    for _ in range(int(TASK_DEADLINE_S) + 2):
        pool.now += 1
        pool.feed(p.Tick())
    assert state(pool, task) == ("failed", "node_not_found")


def test_only_so_many_objects_move_at_once() -> None:
    harness = Harness()
    for name in ("a", "b", "c"):
        node = NodeModel(name, next(harness.incarnations), capacity=1 << 20, num_slots=400)
        harness.nodes[name] = node
        harness.feed(p.NodeJoined(name, node.incarnation, node.offer()))
    harness.answer_all()
    keys = [f"k{number}" for number in range(2 * PULLS_PER_NODE)]
    for key in keys:
        harness.store(key, preferred="a")
    copy(harness, *keys, target="b")
    copy(harness, *keys, target="c")
    assert sum(len(wanted.pulls) for _, _, wanted in harness.pulls) == PULLS_PER_NODE, "the source is busy"
    report = harness.ask(QueryTasks())
    assert isinstance(report, TaskReport)
    assert (report.running, report.pending) == (PULLS_PER_NODE, 3 * PULLS_PER_NODE)
    work(harness)
    assert all(holders(harness, key) == ["a", "b", "c"] for key in keys)


def test_replicate_makes_as_many_copies_as_are_lacking(pool: Harness) -> None:
    pool.store("p1", preferred="a")
    pool.store("p2", replicas=2, preferred="b")
    pool.store("q", preferred="a")
    started = pool.ask(ReplicateObjects(replicas=2, prefix="p"))
    assert isinstance(started, TasksStarted)
    assert [(task.key, task.refusal) for task in started.tasks] == [("p1", "")]
    work(pool)
    assert [len(holders(pool, key)) for key in ("p1", "p2", "q")] == [2, 2, 1]
    started = pool.ask(ReplicateObjects(replicas=5, keys=["q", "none"]))
    assert isinstance(started, TasksStarted)
    assert [(task.key, task.refusal) for task in started.tasks] == [
        ("q", ""),
        ("q", ""),
        ("q", "node_not_found"),
        ("q", "node_not_found"),
        ("none", "object_not_found"),
    ]


def test_evict_makes_room_in_the_order_of_the_policy(pool: Harness) -> None:
    for key in ("k0", "k1", "k2"):
        pool.store(key, preferred="a")
    evicted = pool.ask(EvictObjects(node="a", size_bytes=1))
    assert isinstance(evicted, Evicted)
    assert evicted.objects == 1
    assert pool.exists("k0", "k1", "k2") == [False, True, True]
    rest = pool.ask(EvictObjects(node="a"))
    assert isinstance(rest, Evicted)
    assert rest.objects == 2


def leave(pool: Harness, name: str) -> None:
    """A node is dead, and the master has noticed it."""
    node = pool.nodes.pop(name)
    pool.feed(p.NodeLeft(name, node.incarnation))
