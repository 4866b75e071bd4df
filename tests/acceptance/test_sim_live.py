"""The simulator and a live cluster of mock engines, same trace and same YAML: `scripts/acceptance sim_live`."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from pathlib import Path

import aiohttp
import pytest

from mooncake_core.bench.statistics import request_tbt
from mooncake_core.sim.jobs import make_jobs
from mooncake_core.sim.load import load_simulation
from mooncake_core.sim.systems import simulate
from mooncake_core.testing.cluster import Cluster
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.trace import read_trace

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]
CONFIG = Path(__file__).parent.parent.parent / "configs" / "mock-slow.yaml"
LARGEST_ERROR = 0.10
VOCABULARY = range(2, 2048)


@pytest.mark.parametrize(
    "requests", [200, 600], ids=["short", "long"]
)  # of fewer, a median jumps between two groups of TBTs
def test_medians_agree_within_a_tenth(tmp_path: Path, requests: int) -> None:
    path = _write_trace(tmp_path / "trace.jsonl", requests)
    setup = load_simulation(CONFIG)
    jobs = make_jobs(read_trace(str(path)), block_tokens=setup.config.engine.block_tokens)
    records = simulate(setup, setup.config.systems[0], jobs).records
    cluster = Cluster(CONFIG, tmp_path)
    try:
        live = asyncio.run(_replay(cluster.state.gateway_url, list(read_trace(str(path)))))
    finally:
        cluster.stop()
    errors = {}
    for name, seen in (
        ("ttft_s", [ttft for ttft, _ in live]),
        ("tbt_s", [request_tbt(gaps) for _, gaps in live if gaps]),
    ):
        values = records.column(name)
        expected, measured = statistics.median(values[values >= 0].tolist()), statistics.median(seen)
        errors[name] = expected / measured - 1
        print(
            f"\n{requests} requests, median {name}: simulated {expected:.4f}, live {measured:.4f}, {errors[name]:+.1%}"
        )
    assert all(abs(error) < LARGEST_ERROR for error in errors.values()), errors


def _write_trace(path: Path, requests: int) -> Path:
    """Four requests a second; half of them go on from one of twenty prefixes."""
    draw = random.Random(1)
    at, lines = 0.0, []
    for number in range(requests):
        at += draw.expovariate(4.0)
        length = draw.randint(600, 3600)
        blocks = -(-length // 512)
        shared = draw.randint(1, 3) if draw.random() < 0.5 else 0
        family = draw.randrange(20)
        ids = [10 * family + index for index in range(min(shared, blocks))]
        ids += [1000 * (number + 1) + index for index in range(blocks - len(ids))]
        line = {"timestamp": round(at * 1000), "input_length": length, "output_length": draw.randint(5, 30)}
        lines.append(json.dumps({**line, "hash_ids": ids}))
    path.write_text("\n".join(lines) + "\n")
    return path


async def _replay(url: str, requests: list[TraceRequest]) -> list[tuple[float, list[float]]]:
    """Times to first token, and gaps."""
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=120)) as session:
        begun = time.perf_counter()
        calls = [_complete(session, request, begun + request.arrival_s) for request in requests]
        return await asyncio.gather(*calls)


async def _complete(session: aiohttp.ClientSession, request: TraceRequest, due_s: float) -> tuple[float, list[float]]:
    body = {
        "model": "demo",
        "prompt": _tokens(request),
        "max_tokens": request.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
    }
    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
    async with session.post("/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        events = [(time.perf_counter(), line) async for line in answer.content if line.startswith(b"data: {")]
    times = [
        at
        for at, line in events
        for choice in json.loads(line.removeprefix(b"data: "))["choices"]
        for _ in choice["token_ids"]
    ]
    assert len(times) == request.output_tokens
    return times[0] - due_s, [later - earlier for earlier, later in itertools.pairwise(times)]


def _tokens(request: TraceRequest) -> list[int]:
    """Equal block ids are equal tokens."""
    tokens: list[int] = []
    for block_id in request.block_ids:
        tokens += random.Random(block_id).choices(VOCABULARY, k=request.block_tokens)
    return tokens[: request.input_tokens]
