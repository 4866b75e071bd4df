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
    started = Cluster(MOCK, tmp_path, "prefill.0.metrics_port=0", "prefill.0.local_node.metrics_port=0")
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
    urls = {name: url for process in cluster.state.processes for name, url in process.metrics_urls.items()}
    assert sorted(urls) == [f"prefill-{number}{node}" for number in range(3) for node in ("", "-node")]
    cluster.complete("In the beginning", max_tokens=2)
    carried = [httpx.get(f"{urls[f'prefill-{number}']}/metrics").text for number in range(3)]
    assert any(re.search(r'^mooncake_transfer_bytes_total{.*transport="shm"} [1-9]', text, re.M) for text in carried)
    cluster.wait_until_back("master", cluster.kill("master"))
    assert "role=leader" in httpx.get(f"{url}/metrics/summary").text
