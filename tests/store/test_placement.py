"""Which nodes a put takes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from mooncake_core.store.evictions import LRU
from mooncake_core.store.layout import SLOT_BYTES
from mooncake_core.store.node_chores import NodeChores
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.store.placement import FreeRatioFirst, Order, Placing, strategy
from mooncake_core.wire.messages.membership import SegmentOffer
from mooncake_core.wire.messages.memory import SegmentDescriptor
from mooncake_core.wire.messages.pool import SlotClearing

CAPACITY = 64 * 100
NAMES = ["free-ratio-first", "random", "local-first"]


def node(
    name: str,
    host: str = "h",
    *,
    used: int = 0,
    ready: bool = True,
    capacity: int = CAPACITY,
    chores: NodeChores | None = None,
) -> NodeSpace:
    descriptor = SegmentDescriptor(owner=name, host_id=host, incarnation=1, length_bytes=1, paths={})
    offer = SegmentOffer(
        capacity_bytes=capacity,
        data_offset=0,
        num_slots=1000,
        slot_bytes=SLOT_BYTES,
        read=descriptor,
        write=descriptor,
    )
    made = NodeSpace(name, 1, offer, LRU(), chores)
    if ready:
        made.fenced(descriptor)
        made.end_part(offer.num_slots)
        made.open()
    if used:
        assert made.allocate(used, 0) is not None
    return made


def order(*nodes: NodeSpace, by: str = "free-ratio-first", seed: int = 0) -> Order:
    chores = NodeChores()
    for made in nodes:
        chores.joined(made)
        chores.note_room(made)
    return strategy(by, random.Random(seed))({made.name: made for made in nodes}, chores)


def placing(*nodes: NodeSpace, by: str = "free-ratio-first", preferred: str = "", seed: int = 0) -> Placing:
    return Placing({made.name: made for made in nodes}, order(*nodes, by=by, seed=seed), preferred.split())


def test_the_emptiest_node_comes_first_and_objects_of_a_put_even_out() -> None:
    put = placing(node("a", used=64 * 50), node("b", used=64 * 20), node("c", capacity=2 * CAPACITY, used=64 * 80))
    names = [name for number in range(8) for name in put.place(64 * 10, number, 1)]
    assert "".join(names) == "bbbccabc"


def test_a_put_spreads_evenly_over_equal_nodes() -> None:
    put = placing(*[node(name) for name in "abcd"])
    assert Counter(name for number in range(40) for name in put.place(64, number, 1)) == dict.fromkeys("abcd", 10)


def test_random_placement_is_even_and_repeatable() -> None:
    def chosen(seed: int) -> list[str]:
        put = placing(*[node(name, capacity=64 * 1000) for name in "abcd"], by="random", seed=seed)
        return [name for number in range(400) for name in put.place(64, number, 1)]

    assert chosen(1) == chosen(1) != chosen(2)
    assert all(70 < count < 130 for count in Counter(chosen(1)).values())


@pytest.mark.parametrize("by", NAMES)
def test_the_preferred_node_comes_first_while_it_has_room(by: str) -> None:
    put = placing(node("a"), node("b", used=64 * 90), node("c"), by=by, preferred="b")
    names = [name for number in range(3) for name in put.place(64 * 4, number, 1)]
    assert names[:2] == ["b", "b"]
    assert names[2] in "ac"


def test_preferred_nodes_come_in_their_order_and_get_a_replica_each() -> None:
    put = placing(node("a", "x"), node("b", "x"), node("c", "y"), node("d", "z"), preferred="gone b a")
    assert list(put.place(64, 1, 1)) == ["b"]
    assert list(put.place(64, 2, 2)) == ["b", "a"]
    assert set(put.place(64, 3, 4)) == {"a", "b", "c", "d"}


def test_local_first_stays_on_the_host_of_the_preferred_node() -> None:
    nodes = [node("a", "x"), node("b", "y", used=64 * 90), node("c", "y", used=64 * 60), node("d", "y", used=64 * 80)]
    put = placing(*nodes, by="local-first", preferred="b")
    names = [name for number in range(8) for name in put.place(64 * 10, number, 1)]
    assert Counter(names) == Counter(b=1, c=4, d=2, a=1)
    assert (names[0], names[-1]) == ("b", "a")


@pytest.mark.parametrize("by", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_replicas_lie_on_different_hosts_where_there_are(by: str, seed: int) -> None:
    nodes = [node("a", "x"), node("b", "x"), node("c", "x"), node("d", "y", used=64 * 50), node("e", "z", used=64 * 50)]
    put = placing(*nodes, by=by, preferred="a", seed=seed)
    placed = list(put.place(64, 1, 3))
    assert placed[0] == "a"
    assert set(placed) == {"a", "d", "e"}


@pytest.mark.parametrize("by", NAMES)
def test_where_hosts_are_too_few_replicas_lie_on_different_nodes(by: str) -> None:
    put = placing(node("a", "x"), node("b", "x"), node("c", "y"), by=by)
    placed = put.place(64, 1, 3)
    assert set(placed) == {"a", "b", "c"}
    assert set(put.place(64, 2, 5)) == {"a", "b", "c"}


@pytest.mark.parametrize("by", NAMES)
def test_a_full_host_does_not_keep_replicas_from_lying_together(by: str) -> None:
    put = placing(node("a", "x"), node("b", "x"), node("c", "y", used=CAPACITY), by=by)
    assert set(put.place(64, 1, 2)) == {"a", "b"}


@pytest.mark.parametrize("by", NAMES)
def test_any_node_that_has_room_is_found(by: str) -> None:
    put = placing(*[node(f"n{number}", used=CAPACITY - 64 * (number % 7)) for number in range(50)], by=by)
    assert len([1 for number in range(8) if put.place(64 * 6, number, 1)]) == 7
    assert not put.place(64 * 6, 8, 1)
    assert not put.place(64 * 7, 9, 1)
    assert put.place(64 * 5, 10, 1)  # what is too long for all says nothing about what is shorter


@pytest.mark.parametrize("by", NAMES)
def test_nodes_that_cannot_be_written_to_are_left_out(by: str) -> None:
    closed = node("a", ready=False)
    put = placing(closed, node("b"), by=by, preferred="a")
    assert set(put.place(64, 1, 2)) == {"b"}
    put = placing(closed, by=by, preferred="nobody")
    assert not put.place(64, 1, 1)
    put.note_refused(64, 1)
    assert put.wanting == {}


def test_what_is_refused_is_wanted_where_it_would_have_gone() -> None:
    nodes = [node("a", "x", used=CAPACITY - 64), node("b", "x", used=CAPACITY), node("c", "y", used=CAPACITY - 128)]
    put = placing(*nodes, preferred="b")
    put.note_refused(64 * 40, 1)
    put.note_refused(64 * 40, 1)
    assert put.wanting == {"b": 64 * 80}
    put.note_refused(64 * 40, 2)  # the preferred one cannot take so much
    assert put.wanting == {"b": 64 * 80, "c": 64 * 40, "a": 64 * 40}


def test_a_put_that_finds_no_room_is_told_so_without_a_look_at_the_nodes() -> None:
    full = [node(f"n{number}", used=CAPACITY) for number in range(3)]
    put = placing(*full)
    assert not put.place(64 * 2, 1, 1)
    for made in full:
        made.allocate = None  # type: ignore[method-assign, assignment]
    assert not put.place(64 * 2, 2, 1)
    assert not put.place(64 * 3, 3, 1)


@pytest.mark.parametrize("seed", range(30))
def test_the_ranking_is_what_sorting_all_nodes_would_give(seed: int) -> None:
    rng = random.Random(seed)
    chores = NodeChores()
    nodes: dict[str, NodeSpace] = {}
    ranked = FreeRatioFirst(nodes, chores)
    for number in range(300):
        match rng.randrange(8):
            case 0:
                name = f"n{rng.randrange(12)}"
                if name in nodes:
                    chores.forget(nodes[name])  # it comes back as another one
                nodes[name] = node(name, capacity=64 * rng.choice([50, 100, 200]), chores=chores)
            case 1 if nodes:
                gone = nodes.pop(rng.choice(list(nodes)))
                chores.forget(gone)
            case 2 if nodes:
                rng.choice(list(nodes.values())).drain(rng.random() < 0.5)
            case 3 | 4 if nodes:
                some = rng.choice(list(nodes.values()))
                for extent in list(some.taken.values())[: rng.randrange(4)]:
                    some.give_up(extent, 0.0, 1.0)
                some.cleared(
                    [SlotClearing(slot=slot, allocation_id=x.allocation_id) for slot, x in some.clearing.items()]
                )
            case 5 if nodes:  # a preferred node is taken without a walk
                rng.choice(list(nodes.values())).allocate(64 * rng.randrange(1, 9), number)
            case _:
                walk = ranked.walk("")
                wanted = sorted(
                    (each for each in nodes.values() if each.accepts), key=lambda each: (-each.free_ratio(), each.name)
                )
                steps = rng.randrange(1, 14)
                assert [each.name for each, _ in zip(walk, range(steps), strict=False)] == [
                    each.name for each in wanted[:steps]
                ]
                if wanted:
                    wanted[0].allocate(64 * rng.randrange(1, 9), number)
                walk.close()


def test_a_put_looks_at_few_of_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node(f"n{number:03}", f"h{number % 50}") for number in range(500)]
    ranked = order(*nodes)
    looks = 0
    free_ratio = NodeSpace.free_ratio

    def counted(self: NodeSpace) -> float:
        nonlocal looks
        looks += 1
        return free_ratio(self)

    by_name = {made.name: made for made in nodes}
    assert Placing(by_name, ranked, []).place(64, 0, 1)  # ranks them all
    monkeypatch.setattr(NodeSpace, "free_ratio", counted)
    for number in range(1, 101):
        assert len(Placing(by_name, ranked, []).place(64, number, 2)) == 2
    assert looks < 100 * 10
