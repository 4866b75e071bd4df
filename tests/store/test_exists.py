"""Which keys can be read, while some are being written, replaced, or removed before they were whole."""

from __future__ import annotations

import pytest

from mooncake_core.wire.messages.pool import RemoveAll, RemovedAll
from tests.store.pool_harness import Harness


@pytest.mark.parametrize("num_absent", [0, 1, 50])
def test_only_what_is_whole_can_be_read_however_many_are_asked_for(harness: Harness, num_absent: int) -> None:
    harness.store("whole")
    harness.put("doomed")
    assert harness.ask(RemoveAll(force=True)) == RemovedAll(removed=1, kept=0)
    harness.store("whole")
    harness.store("replaced")
    harness.put("replaced", upsert=True)
    writing = harness.put("writing")
    absent = [f"absent{number}" for number in range(num_absent)]
    keys = ["whole", "doomed", "replaced", "writing"]
    assert harness.exists(*keys, *absent) == [True, False, True, False, *[False] * num_absent]
    assert [harness.exists(key) for key in keys] == [[True], [False], [True], [False]]
    assert harness.end(writing) == ""
    assert harness.exists(*keys, *absent) == [True, False, True, True, *[False] * num_absent]
