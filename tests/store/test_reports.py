"""What the pool reports about itself: nodes, ratios, the prefixes read most."""

from __future__ import annotations

import pytest

from mooncake_core.store.hot_prefixes import LONGEST_WALK
from mooncake_core.wire.messages.pool import Get, Remove
from tests.store.pool_harness import Harness


@pytest.fixture
def harness() -> Harness:
    made = Harness()
    for name in ("b", "a"):
        made.join(name)
    made.answer_all()
    return made


def test_nodes_add_up_to_the_pool(harness: Harness) -> None:
    harness.store("k0", preferred="a")
    harness.store("k1", preferred="b")
    harness.get("k1")
    harness.ask(Remove(keys=["k1"], force=True))
    report = harness.pool.report(harness.now)
    assert [node.name for node in report.nodes] == ["a", "b"]
    assert [node.num_objects for node in report.nodes] == [1, 0]
    assert [node.quarantined_bytes > 0 for node in report.nodes] == [False, True]
    assert report.used_bytes == sum(node.used_bytes for node in report.nodes) > report.quarantined_bytes
    assert report.capacity_bytes == sum(node.capacity_bytes for node in report.nodes)


def test_the_ratio_in_bytes_is_what_was_found_of_what_was_found_or_had_to_be_put(harness: Harness) -> None:
    assert harness.pool.report(harness.now).byte_hit_ratio == 0
    harness.store("k0", 100)
    harness.get("k0", "missing")
    harness.get("k0")
    report = harness.pool.report(harness.now)
    assert (report.hit_bytes, report.put_bytes) == (200, 100)
    assert report.byte_hit_ratio == pytest.approx(2 / 3)
    assert report.byte_hit_ratio_by_tier == {"dram": pytest.approx(2 / 3)}


def test_a_read_counts_for_the_node_that_it_is_sent_to_and_for_its_tenant(harness: Harness) -> None:
    harness.store("k0", 100, preferred="b", replicas=2)
    harness.store("k1", 50, preferred="a")
    harness.get("k0", "k1", "missing")
    harness.get("k0")
    report = harness.pool.report(harness.now)
    assert {node.name: (node.hits, node.hit_bytes) for node in report.nodes} == {"a": (1, 50), "b": (2, 200)}
    assert report.tenants[0].hit_ratio == pytest.approx(3 / 4)


def test_a_read_counts_for_the_head_of_its_chain(harness: Harness) -> None:
    for key, parent in (("k0", ""), ("k1", "k0"), ("k2", "k1"), ("k3", "")):
        harness.store(key, parent=parent)
    harness.get("k1", "k2", "missing")
    harness.get("missing", "k2")
    harness.get("k3")
    harness.get("missing")
    first, second = harness.pool.report(harness.now, num_hottest=5).hottest
    assert (first.head, first.reads, first.num_objects, first.size_bytes) == ("k0", 2, 3, 3 * 64)
    assert (second.head, second.reads, second.num_objects) == ("k3", 1, 1)
    assert harness.pool.report(harness.now).hottest == []


def test_a_tenants_prefix_is_called_as_the_tenant_calls_it(harness: Harness) -> None:
    harness.store("k0", tenant="acme")
    harness.ask(Get(keys=["k0"], tenant="acme"))
    harness.ask(Get(keys=["k0"], tenant="acme", lease=False))
    (prefix,) = harness.pool.report(harness.now, num_hottest=5).hottest
    assert (prefix.tenant, prefix.head, prefix.reads) == ("acme", "k0", 1)


def test_the_way_to_the_head_of_a_chain_is_bounded(harness: Harness) -> None:
    node = harness.nodes["a"]
    node.num_slots, node.capacity = LONGEST_WALK + 9, (LONGEST_WALK + 9) * 1024
    harness.restart()
    harness.answer_all()
    for number in range(LONGEST_WALK + 2):
        harness.store(f"k{number}", parent=f"k{number - 1}" if number else "", preferred="a")
    harness.get(f"k{LONGEST_WALK + 1}")
    (prefix,) = harness.pool.report(harness.now, num_hottest=1).hottest
    assert prefix.head == "k1"
