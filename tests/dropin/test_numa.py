"""Keeping a program on one NUMA node."""

from __future__ import annotations

import os

import pytest

from mooncake import _numa
from mooncake.store import bind_to_numa_node


def test_lists_of_processors() -> None:
    assert _numa._processors("0-3,8\n") == {0, 1, 2, 3, 8}
    assert _numa._processors("5") == {5}


def test_a_node_that_is_not_there_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = os.sched_getaffinity(0)
    bind_to_numa_node(4095)
    assert os.sched_getaffinity(0) == before
    assert "cannot bind to NUMA node 4095" in caplog.text
