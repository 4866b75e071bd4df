"""A hundred mock instances under the first ten minutes of a trace, faster than it was: `scripts/acceptance hundred`.

MOONCAKE_TRACE names a trace with blocks of 512 tokens, such as FAST'25's conversation trace; without it sessions are generated. A
sixteenth of all lengths is asked for, since a block of the cluster has 32 tokens, after a beginning that all share.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import yaml

from mooncake_core.bench.statistics import quantiles
from mooncake_core.testing.cluster import Cluster
from mooncake_core.wire.messages.envelope import Done
from mooncake_core.wire.messages.inspection import (
    Decision,
    Decisions,
    GetStatus,
    InspectDecisions,
    MemberStatus,
    Status,
)
from mooncake_core.wire.messages.membership import SwitchRole
from mooncake_core.workload.generators import Arrivals, Sessions, generate
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.trace import read_trace

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
CONFIG = Path(__file__).parent.parent.parent / "configs" / "mock-hundred.yaml"
SPAN_S = 600.0
SPEED = 6.0
SCALE = 16
SHARED_BLOCKS = 2
LONGEST_TOKENS = 3500
VOCABULARY = range(2, 2048)


@dataclass(frozen=True, slots=True)
class Answered:
    """What a client saw."""

    request_id: str
    status: int
    ttft_s: float = 0.0
    gap_s: float = 0.0
    """Mean time between tokens."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    config = yaml.safe_load(CONFIG.read_text())
    config["prefill"][0]["local_node"] = {"capacity": "4MiB", "object_size": "4KiB", "prefault": False}
    config["scheduler"] = {
        "plan_roles": True,
        "ttft_slo": "30s",
        "tbt_slo": "1s",
        "decisions": 10_000,
    }
    config["gateway"]["patience"] = "60s"
    path = tmp_path / "hundred.yaml"
    path.write_text(yaml.safe_dump(config))
    made = Cluster(path, tmp_path)
    yield made
    made.stop()


def test_a_hundred_instances_serve_a_trace_and_an_emptied_pool_recovers(cluster: Cluster) -> None:
    requests = list(_requests())
    answers = asyncio.run(_replay(cluster.state.gateway_url, requests))
    decisions = _decisions(cluster)
    print(f"\n{len(requests)} requests at {SPEED:g} times the trace's speed, {len(decisions)} decisions")
    assert {answer.status for answer in answers} == {200}
    assert all(any(_is_of(one, answer) for one in decisions.get(answer.request_id, [])) for answer in answers)
    _print_errors(answers, decisions)
    _check_explained(decisions)
    placed = collections.Counter(one.prefill for found in decisions.values() for one in found if one.prefill)
    fewest, mean = min(placed.values()), len(requests) / 50
    print(f"requests of a prefill instance: fewest {fewest}, mean {mean:.1f}, most {max(placed.values())}")
    assert len(placed) == 50, "nobody starves"
    assert fewest > mean / 4
    _empty_the_prefill_pool(cluster)


def _empty_the_prefill_pool(cluster: Cluster) -> None:
    names = [member.name for member in _members(cluster) if member.role == "prefill"]
    for name in names:
        cluster.ask(SwitchRole(name=name, role="decode"), Done)
    begun = time.monotonic()
    answer = cluster.complete("In the beginning", max_tokens=4)
    assert answer["choices"]
    roles = collections.Counter(member.role for member in _members(cluster))
    print(f"emptied, the prefill pool served again after {time.monotonic() - begun:.1f}s: {dict(roles)}")
    assert roles["prefill"] >= 1
    assert cluster.cache().problems == []


def _print_errors(answers: Sequence[Answered], decisions: dict[str, list[Decision]]) -> None:
    """Of what was expected when a request was placed, against what its client saw."""
    pairs = [(answer, decisions[answer.request_id][0]) for answer in answers]
    for name, errors in (
        ("TTFT", [abs(answer.ttft_s - one.expected_ttft_s) for answer, one in pairs]),
        ("TBT", [abs(answer.gap_s - one.expected_tbt_s) for answer, one in pairs if answer.gap_s]),
    ):
        found = quantiles(errors)
        assert found is not None
        print(f"error of the expected {name}: p50 {found.p50 * 1e3:.1f}ms, p90 {found.p90 * 1e3:.1f}ms")
    seen = statistics.median(answer.ttft_s for answer in answers)
    print(f"median TTFT {seen * 1e3:.1f}ms, TBT {statistics.median(one.gap_s for one in answers) * 1e3:.1f}ms")


def _check_explained(decisions: dict[str, list[Decision]]) -> None:
    """The winner is among the candidates, with what was expected of it."""
    for one in itertools.chain.from_iterable(decisions.values()):
        assert one.outcome == "dispatched" or one.reason
        if one.outcome == "dispatched":
            winner = next(candidate for candidate in one.candidates if candidate.prefill == one.prefill)
            assert winner.ttft_s == pytest.approx(one.expected_ttft_s)
            assert any(candidate.decode == one.decode for candidate in one.decodes)


def _is_of(decision: Decision, answer: Answered) -> bool:
    return decision.outcome == "dispatched" and decision.request_id.startswith(answer.request_id)


def _decisions(cluster: Cluster) -> dict[str, list[Decision]]:
    """By request, whatever its attempts."""
    found: dict[str, list[Decision]] = {}
    for one in cluster.ask(InspectDecisions(limit=10_000), Decisions).decisions:
        found.setdefault(one.request_id.partition(".")[0], []).insert(0, one)
    return found


def _members(cluster: Cluster) -> list[MemberStatus]:
    members: list[MemberStatus] = list(cluster.ask(GetStatus(), Status).members)
    return members


def _requests() -> Iterator[TraceRequest]:
    if path := os.environ.get("MOONCAKE_TRACE"):
        found = read_trace(path)
    else:
        found = generate(Sessions(), Arrivals(rate=3.3), requests=100_000, block_tokens=512, seed=0)
    return itertools.takewhile(lambda request: request.arrival_s < SPAN_S, found)


async def _replay(url: str, requests: Sequence[TraceRequest]) -> list[Answered]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:
        begun = time.perf_counter()
        calls = [_complete(session, request, begun + request.arrival_s / SPEED) for request in requests]
        return list(await asyncio.gather(*calls))


async def _complete(session: aiohttp.ClientSession, request: TraceRequest, due_s: float) -> Answered:
    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
    body = {
        "model": "demo",
        "prompt": _tokens(request),
        "max_tokens": max(2, min(request.output_tokens // SCALE, 64)),
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "return_token_ids": True,
    }
    sent = time.perf_counter()
    async with session.post("/v1/completions", json=body) as answer:
        events = [(time.perf_counter(), line) async for line in answer.content if line.startswith(b"data: {")]
        if answer.status != 200:
            return Answered("", answer.status)
    parsed = [(at, json.loads(line.removeprefix(b"data: "))) for at, line in events]
    times = [at for at, event in parsed for choice in event["choices"] for _ in choice["token_ids"]]
    gap_s = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    return Answered(parsed[0][1]["id"].removeprefix("cmpl-"), 200, times[0] - sent, gap_s)


def _tokens(request: TraceRequest) -> list[int]:
    """A beginning that all have, then a sixteenth of the request: equal block ids are equal tokens."""
    tokens: list[int] = []
    for block_id in [*(-1 - index for index in range(SHARED_BLOCKS)), *request.block_ids]:
        tokens += random.Random(block_id).choices(VOCABULARY, k=request.block_tokens // SCALE)
        if len(tokens) > LONGEST_TOKENS:
            break
    length = SHARED_BLOCKS * request.block_tokens // SCALE + request.input_tokens // SCALE
    return tokens[: max(1, min(length, LONGEST_TOKENS))]
