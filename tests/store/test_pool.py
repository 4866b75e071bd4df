"""What the pool decides, case by case."""

from __future__ import annotations

from mooncake_core.errors import NoSpace, ObjectExists, ObjectLeased, ObjectNotFound, StaleAllocation
from mooncake_core.store import events as p
from mooncake_core.store.pool_settings import MARGIN_S
from mooncake_core.wire.messages.objects import RemoveReplicas
from mooncake_core.wire.messages.pool import (
    Remove,
    RemoveAll,
    Removed,
    RemovedAll,
)
from tests.store.pool_harness import KEYS, LATE_S, SETTINGS, Harness


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


def test_an_object_is_removed_from_one_node_and_goes_with_the_last(harness: Harness) -> None:
    harness.join("b")
    harness.answer_all()
    harness.store("k", replicas=2)
    harness.get("k")
    assert harness.ask(RemoveReplicas(keys=["k"], node="a")) == Removed(refusals=[ObjectLeased.code])
    harness.now += SETTINGS.read_lease_s + MARGIN_S
    answer = harness.ask(RemoveReplicas(keys=["k", "none"], node="a"))
    assert answer == Removed(refusals=["", ObjectNotFound.code])
    assert [place.node for place in harness.describe("k").replicas] == ["b"]  # type: ignore[union-attr]
    harness.answer_all()
    assert (harness.pool.usage("a")[1], harness.nodes["a"].slots) == (0, {})
    assert harness.ask(RemoveReplicas(keys=["k"], node="a")) == Removed(refusals=[ObjectNotFound.code])
    assert harness.ask(RemoveReplicas(keys=["k"], node="b")) == Removed(refusals=[""])
    assert harness.exists("k") == [False]
    assert harness.pool.check() == []


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
    assert harness.index == {"a": {}, "b": {}}


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
    old = p.BlocksReported(p.AskReport("a", 2, 2, 0), harness.nodes["a"].report(0))
    harness.join("a")
    harness.feed(harness.unanswered.pop())
    harness.feed(old)
    assert harness.exists("k") == [False]


def test_a_clean_revoke_gives_space_back_at_once_and_one_in_doubt_after_the_writers_deadline(harness: Harness) -> None:
    harness.end(harness.put("clean"), revoke=True)
    harness.answer_all()
    assert harness.pool.usage("a")[1] == 0
    harness.end(harness.put("in doubt"), revoke=True, settled=[])
    harness.now += SETTINGS.writer_deadline_s + LATE_S
    harness.feed(p.Tick())
    harness.answer_all()
    assert harness.pool.usage("a")[1] > 0
    harness.now += MARGIN_S
    harness.feed(p.Tick())
    harness.answer_all()
    assert harness.pool.usage("a")[1] == 0


def test_a_silent_writer_is_shut_out_before_its_space_is_used_again(harness: Harness) -> None:
    silent = harness.put("silent")
    other = harness.put("other")
    harness.now += SETTINGS.writer_deadline_s + MARGIN_S
    commands = harness.feed(p.Tick())
    assert [type(command) for command in commands] == [p.FenceNode, p.ClearNodeSlots]
    assert not harness.can_write(silent, "a")
    assert harness.put("k").refusal == NoSpace.code  # nobody can be told where to write until the node has answered
    used = harness.pool.usage("a")[1]
    harness.feed(harness.unanswered.pop(0))
    harness.answer_all()
    assert harness.pool.usage("a")[1] < used
    fresh = harness.put("fresh")
    assert harness.can_write(fresh, "a")
    assert harness.end(other) == StaleAllocation.code


def test_writers_that_a_fence_shut_out_need_no_other_one(harness: Harness) -> None:
    harness.put("silent")
    harness.now += 1
    late = harness.put("late")
    harness.now += SETTINGS.writer_deadline_s
    harness.feed(p.Tick())
    harness.answer_all()
    assert not harness.can_write(late, "a")
    harness.now += 1
    assert not [command for command in harness.feed(p.Tick()) if isinstance(command, p.FenceNode)]
    harness.answer_all()
    assert harness.pool.usage("a")[1] == 0


def test_a_fence_that_is_answered_late_is_asked_again_in_the_same_round() -> None:
    harness = Harness()
    harness.join("a")
    first = harness.unanswered.pop()
    harness.now += 2
    harness.feed(p.Tick())
    second = harness.unanswered.pop()
    assert first == second
    harness.feed(first)
    harness.feed(second)
    harness.answer_all()
    assert harness.can_write(harness.put("k"), "a")


def test_the_answer_to_an_earlier_fence_is_not_taken_for_the_newest() -> None:
    harness = Harness()
    harness.join("a")
    late = harness.unanswered.pop()
    node = harness.nodes["a"]
    harness.feed(p.NodeLeft("a", node.incarnation))
    harness.feed(p.NodeJoined("a", node.incarnation, node.offer()))
    newest = harness.unanswered.pop()
    harness.feed(late)
    assert harness.pool.usage("a")[3] == "fencing"
    harness.feed(newest)
    harness.answer_all()
    assert harness.can_write(harness.put("k"), "a")


def test_an_object_that_no_node_can_hold_is_refused_and_nothing_goes(harness: Harness) -> None:
    for number in range(10):
        harness.store(f"k{number}", 64 * 2)
    harness.now += 60
    assert harness.put("huge", 64 * 1000).refusal == NoSpace.code
    assert harness.exists(*KEYS[:10]) == [True] * 10


def test_room_is_made_only_where_the_put_would_go(harness: Harness) -> None:
    harness.join("b")
    harness.answer_all()
    for number in range(8):
        harness.store(f"a{number}", 64 * 4, preferred="a")
        harness.store(f"b{number}", 64 * 4, preferred="b")
    harness.now += 60
    assert harness.put("k", 64 * 20, preferred="a").refusal == NoSpace.code
    assert sum(harness.exists(*[f"a{number}" for number in range(8)])) < 8
    assert sum(harness.exists(*[f"b{number}" for number in range(8)])) == 8
    harness.answer_all()
    assert harness.put("k", 64 * 20, preferred="a").placements


def store_chain(harness: Harness, name: str, length: int, size: int = 64 * 4) -> None:
    for number in range(length):
        harness.store(f"{name}{number}", size, parent=f"{name}{number - 1}" if number else "")


def test_a_refused_put_evicts_as_much_of_a_chain_as_it_needs(harness: Harness) -> None:
    store_chain(harness, "k", 8)
    harness.now += 60
    assert harness.put("more", 64 * 30).refusal == NoSpace.code
    harness.answer_all()
    assert harness.put("more", 64 * 30).placements


def test_a_cold_chain_goes_as_a_whole_before_the_tail_of_a_warm_one(harness: Harness) -> None:
    store_chain(harness, "cold", 4)
    store_chain(harness, "warm", 4)
    harness.now += 60
    assert harness.put("more", 64 * 23).refusal == NoSpace.code
    assert harness.exists(*[f"cold{number}" for number in range(4)]) == [False] * 4
    assert harness.exists(*[f"warm{number}" for number in range(4)]) == [True, True, True, False]


def test_a_head_that_is_used_stays_when_its_cold_tail_goes(harness: Harness) -> None:
    store_chain(harness, "k", 3)
    for number in range(6):
        harness.store(f"x{number}", 64 * 4)
    harness.get("k0")
    harness.now += 60
    assert harness.put("more", 64 * 15).refusal == NoSpace.code
    assert harness.exists("k0", "k1", "k2") == [True, False, False]
    assert harness.exists("x0", "x1", "x2") == [False, False, True]


def test_what_was_removed_under_a_lease_does_not_come_back_and_its_space_waits(harness: Harness) -> None:
    grant = harness.store("k")
    harness.get("k")
    assert harness.ask(RemoveAll(force=True)) == RemovedAll(removed=1, kept=0)
    harness.restart()
    harness.answer_all()
    assert harness.exists("k") == [False]
    assert harness.put("k").placements[0].offset != grant.placements[0].offset
    harness.settle()
    assert harness.pool.usage("a")[1] == 0


def test_a_put_that_was_under_way_when_all_was_removed_is_not_committed(harness: Harness) -> None:
    grant = harness.put("k")
    harness.write(grant)
    assert harness.ask(RemoveAll(force=True)) == RemovedAll(removed=0, kept=0)
    again = harness.put("k")
    assert again.placements
    assert harness.end(grant) == StaleAllocation.code
    assert harness.end(again) == ""
    assert harness.exists("k") == [True]


def test_a_put_goes_on_without_a_node_that_could_not_be_written_to(harness: Harness) -> None:
    harness.join("b")
    harness.answer_all()
    grant = harness.put("k", replicas=2)
    assert harness.end(grant, nodes=["b"], settled=["b"]) == ""
    (found,) = harness.get("k").objects
    assert found is not None
    assert [placement.node for placement in found.placements] == ["b"]
    assert harness.pool.usage("a")[1] > 0  # a write may still land there
    assert harness.end(harness.put("other"), nodes=[]) == StaleAllocation.code
    harness.settle()
    assert harness.pool.usage("a")[1] == 0
