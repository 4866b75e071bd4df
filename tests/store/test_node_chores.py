"""A question looks at no node that has nothing to do with it."""

from __future__ import annotations

from typing import Any

import pytest

from mooncake_core.store import events as p
from mooncake_core.store.node_space import NodeSpace
from mooncake_core.wire.messages.pool import Exists, NewObject, PutStart
from tests.store.pool_harness import Harness

NUM_NODES = 20


class Looks:
    """Counts the looks at nodes' states."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("ready", "writable", "needs_fence", "unconfirmed"):
            monkeypatch.setattr(NodeSpace, name, property(self._counting(getattr(NodeSpace, name).fget)))
        for name in ("due", "unsent", "next_deadline"):
            monkeypatch.setattr(NodeSpace, name, self._counting(getattr(NodeSpace, name)))

    def _counting(self, method: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            self.count += 1
            return method(*arguments)

        return counted


def test_what_a_question_costs_does_not_grow_with_the_number_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    for number in range(NUM_NODES):
        harness.join(f"n{number}")
    harness.answer_all()
    looks = Looks(monkeypatch)
    harness.pool.handle(p.Asked(1, Exists(keys=["a"])), harness.now)
    harness.pool.next_deadline()
    assert looks.count == 0
    put = PutStart(objects=[NewObject(key="a", size_bytes=64)], preferred_node="n3")
    harness.pool.handle(p.Asked(2, put), harness.now)
    harness.pool.next_deadline()
    assert looks.count < NUM_NODES / 2
