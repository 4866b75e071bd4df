"""The admin port of a real master: where it is found, what it measures, and that a new master takes it over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mooncake_core.testing.cluster import Cluster, as_json

pytestmark = pytest.mark.cluster

MOCK = Path(__file__).parents[2] / "configs" / "mock.yaml"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(MOCK, tmp_path)
    yield started
    started.stop()


def test_the_admin_port_is_published_and_outlives_its_master(cluster: Cluster) -> None:
    url = cluster.state.admin_url
    assert as_json(cluster.command("status", "--json"))["admin_url"] == url
    segments = httpx.get(f"{url}/get_all_segments").text.split()
    assert segments == ["prefill-0-node", "prefill-1-node", "prefill-2-node"]
    metrics = httpx.get(f"{url}/metrics").text
    pause = re.search(r"^mooncake_event_loop_longest_pause_seconds (\S+)$", metrics, re.MULTILINE)
    assert pause is not None
    assert float(pause[1]) > 0
    assert 'mooncake_members{role="prefill",state="ready"} 3.0' in metrics
    cluster.wait_until_back("master", cluster.kill("master"))
    assert "role=leader" in httpx.get(f"{url}/metrics/summary").text
