"""A node's space as its report tells it, part by part."""

from __future__ import annotations

from mooncake_core.store.allocator import coalesced
from mooncake_core.store.evictions import LRU
from mooncake_core.store.node_space import Extent, NodeSpace
from tests.store.pool_harness import NodeModel


def test_extents_that_touch_each_other_become_one() -> None:
    assert coalesced([(128, 64), (0, 64), (64, 64), (256, 64)]) == [(0, 192), (256, 64)]
    assert coalesced([]) == []
    assert coalesced([(64, 64), (64, 64)]) == [(64, 64), (64, 64)], "that they overlap is for others to notice"


def test_what_no_part_named_is_free() -> None:
    model = NodeModel("n", 1)
    node = NodeSpace("n", 1, model.offer(), LRU())
    start = model.offer().data_offset
    parts = [[Extent(1, start + 192, 64, 7), Extent(3, start, 128, 8)], [], [Extent(11, start + 128, 64, 9)]]
    for part, cursor in zip(parts, (4, 8, 12), strict=True):
        for extent in part:
            assert node.adopt(extent)
        assert not node.adopt(Extent(1, start + 640, 64, 10)), "the slot is taken"
        node.end_part(cursor)
    node.open()
    node.fenced(model.write)
    assert node.used_bytes == 256
    assert node.check(lambda allocation_id: True) == []
    found = [node.allocate(64, 20 + number) for number in range(10)]
    assert [extent.slot if extent else None for extent in found] == [0, 2, 4, 5, 6, 7, 8, 9, 10, None]
    assert found[0] is not None
    assert found[0].offset == start + 256
