"""A hundred mock instances under steady load: `scripts/acceptance gateway`; MOONCAKE_GATEWAY_RATE and
MOONCAKE_GATEWAY_SECONDS make it another load, to look at it while working on the gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from mooncake_core.testing.cluster import Cluster

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"
RATE = int(os.environ.get("MOONCAKE_GATEWAY_RATE", "200"))
SECONDS = int(os.environ.get("MOONCAKE_GATEWAY_SECONDS", "300"))
PROMPT_TOKENS = 24
"""Less than a block: the pool is not what is looked at here."""
OUTPUT_TOKENS = 4
MOST_GROWTH = 1.05
"""From the middle of the run on: until then what is kept of requests, a bounded number, fills up."""
SAMPLE_S = 5.0


def test_memory_is_flat_and_the_gateway_adds_little(tmp_path: Path) -> None:
    cluster = Cluster(CONFIGS / "mock-hundred.yaml", tmp_path)
    memory: list[dict[str, int]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_S):
            memory.append(resident_bytes(cluster))

    watcher = threading.Thread(target=watch)
    try:
        before_s = cpu_s(cluster)
        watcher.start()
        load = ["--rate", str(RATE), "--arrivals", "constant", "--requests", str(RATE * SECONDS)]
        shape = ["--prompt-tokens", str(PROMPT_TOKENS), "--output-tokens", str(OUTPUT_TOKENS), "--seed", "1"]
        command = [sys.executable, "-m", "mooncake_cli.main", "bench", "serve", *load, *shape, "--json"]
        result = subprocess.run(command, env=cluster.environ, capture_output=True, text=True, timeout=SECONDS + 200)
        stop.set()
        watcher.join()
        after_s = cpu_s(cluster)
        assert result.stdout, result.stderr
        report = json.loads(result.stdout)
        overhead = gateway_overhead(cluster)
    finally:
        stop.set()
        cluster.stop()
    middle, end = memory[len(memory) // 2], memory[-1]
    print(
        f"\n{report['succeeded']} of {RATE * SECONDS} requests in {report['duration_s']:.0f}s, failed: {report['failed']}; "
        f"{overhead}"
    )
    print(
        f"CPU ms per request of {OUTPUT_TOKENS} tokens: "
        + ", ".join(
            f"{name} {(after_s[name] - before_s[name]) / report['succeeded'] * 1e3:.2f}" for name in sorted(after_s)
        )
    )
    each_minute = memory[:: int(60 / SAMPLE_S)]
    for name in sorted(end):
        print(
            f"MiB resident after each minute: {name} {' '.join(str(sample[name] >> 20) for sample in [*each_minute, end])}"
        )
    assert report["failed"] == {}
    assert report["duration_s"] < SECONDS * 1.05
    for name, bytes_before in middle.items():
        assert end[name] <= bytes_before * MOST_GROWTH, name


def cpu_s(cluster: Cluster) -> dict[str, float]:
    """CPU time that each process has used."""
    state = cluster._state()
    return {process.name: sum(psutil.Process(process.pid).cpu_times()[:2]) for process in state.processes}


def resident_bytes(cluster: Cluster) -> dict[str, int]:
    state = cluster._state()
    return {process.name: psutil.Process(process.pid).memory_info().rss for process in state.processes}


def gateway_overhead(cluster: Cluster) -> str:
    """p50 and p99 of what the gateway itself adds, from its own metrics."""
    text = cluster.http.get("/metrics").text
    return "; ".join(
        f"{label} p50 {quantile(text, name, 0.5) * 1e3:.2f} ms, p99 {quantile(text, name, 0.99) * 1e3:.2f} ms"
        for label, name in (
            ("arrival to dispatch", "mooncake_gateway_dispatch_seconds"),
            ("token in to token out", "mooncake_gateway_token_seconds"),
        )
    )


def quantile(metrics: str, name: str, share: float) -> float:
    """The smallest bucket bound below which that share of a histogram lies."""
    buckets = [
        (float(line.split('le="')[1].split('"')[0]), float(line.rpartition(" ")[2]))
        for line in metrics.splitlines()
        if line.startswith(f"{name}_bucket")
    ]
    total = max(count for _, count in buckets)
    assert total > 0, f"{name} has no samples"
    return min(bound for bound, count in buckets if count >= share * total)
