"""The pool's driver asks nodes, and tells people when one does not answer."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from mooncake_core.errors import PeerUnreachable
from mooncake_core.roles.master.pool import PoolDriver
from mooncake_core.store import events as p
from mooncake_core.store.evictions import LRU
from mooncake_core.store.pool import Pool
from mooncake_core.store.pool_settings import PoolSettings
from mooncake_core.wire.messages.envelope import Done


class Node:
    """Answers, or is not there."""

    def __init__(self) -> None:
        self.is_there = False

    async def call(self, message: object, reply_type: type, *, timeout_s: float) -> Done:
        if not self.is_there:
            raise PeerUnreachable("nobody listens")
        return Done()


async def test_that_a_node_does_not_answer_is_said_once_until_it_answers_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node()
    pool = Pool(PoolSettings(), term=1, next_id=lambda: 1, eviction=LRU)
    driver = PoolDriver(pool, term=1, node_client=lambda name: cast(Any, node), on_change=lambda change: None)
    mark = p.MarkNode("a", 1, draining=True)
    with caplog.at_level(logging.WARNING):
        await driver._mark(mark)
        await driver._mark(mark)
        assert caplog.messages == ["node a did not answer MarkDraining: nobody listens"]
        node.is_there = True
        await driver._mark(mark)
        node.is_there = False
        await driver._mark(mark)
    assert len(caplog.messages) == 2
    await driver.close()
