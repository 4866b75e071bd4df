"""What most tests of the pool begin with."""

from __future__ import annotations

import pytest

from tests.store.pool_harness import Harness


@pytest.fixture
def harness() -> Harness:
    """A pool with one node, "a", which has answered."""
    made = Harness()
    made.join("a")
    made.answer_all()
    return made
