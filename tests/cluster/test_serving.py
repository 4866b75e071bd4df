"""A cluster that serves the demo model: what comes out, what is cached, and what survives."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mooncake_core.testing.cluster import STOPPED_S, Cluster, alive, resources, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(240)]
CONFIGS = Path(__file__).parent.parent.parent / "configs"
LONG = "And the king said unto all the people of the land, " * 12


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(
        CONFIGS / "1p1d.yaml", tmp_path_factory.mktemp("1p1d"), "pool.read_lease=1s", "gateway.patience=60s"
    )
    yield cluster
    cluster.stop()


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_repeated_prefix_comes_from_the_cache(cluster: Cluster) -> None:
    first = cluster.complete(LONG)
    wait_for(lambda: cluster.cache().num_writing == 0)
    second = cluster.complete(LONG)
    prompt_tokens = first["usage"]["prompt_tokens"]
    assert cached(second) == (prompt_tokens - 1) // 32 * 32
    assert second["choices"] == first["choices"]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65])
def test_at_least_one_token_is_always_computed(cluster: Cluster, length: int) -> None:
    prompt = [2 + (length * 7 + index) % 1000 for index in range(length)]
    cluster.complete(prompt)
    wait_for(lambda: cluster.cache().num_writing == 0)
    assert cached(cluster.complete(prompt)) == (length - 1) // 32 * 32


def test_a_cache_salt_separates(cluster: Cluster) -> None:
    prompt = list(range(100, 200))
    cluster.complete(prompt, cache_salt="a")
    wait_for(lambda: cluster.cache().num_writing == 0)
    assert cached(cluster.complete(prompt, cache_salt="b")) == 0
    wait_for(lambda: cluster.cache().num_writing == 0)
    assert cached(cluster.complete(prompt, cache_salt="a")) == 96


def test_sampling_with_a_seed_is_repeatable_and_stop_strings_stop(cluster: Cluster) -> None:
    options = {"temperature": 0.9, "seed": 5, "max_tokens": 30}
    first = cluster.complete("And the LORD", **options)["choices"][0]
    assert cluster.complete("And the LORD", **options)["choices"][0] == first
    word = first["text"].split()[2]
    stopped = cluster.complete("And the LORD", **options, stop=word)["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert first["text"].startswith(stopped["text"])
    assert word not in stopped["text"]


def test_log_probabilities_come_from_both_instances_and_name_the_greedy_tokens(cluster: Cluster) -> None:
    answer = cluster.complete("And the LORD", max_tokens=6, logprobs=3, return_token_ids=True)
    logprobs = answer["choices"][0]["logprobs"]
    assert len(logprobs["token_logprobs"]) == len(logprobs["tokens"]) == 6
    for token, chosen, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert max(top, key=top.get) == token  # greedy: nothing is more probable than what was chosen
        assert top[token] == pytest.approx(chosen)
        assert sum(map(math.exp, top.values())) <= 1.0001


def test_what_is_not_to_be_stored_reads_the_cache_and_leaves_nothing(cluster: Cluster) -> None:
    prompt = list(range(300, 500))
    cluster.complete(prompt, no_store=True)
    wait_for(lambda: cluster.cache().num_writing == 0)
    assert cached(cluster.complete(prompt)) == 0
    wait_for(lambda: cluster.cache().num_writing == 0)
    assert cached(cluster.complete([*prompt, *range(500, 600)], no_store=True)) == 192
    wait_for(lambda: cluster.cache().num_writing == 0)
    assert cached(cluster.complete([*prompt, *range(500, 600)])) == 192


def test_choices_of_one_prompt_are_those_of_consecutive_seeds(cluster: Cluster) -> None:
    options = {"temperature": 1.0, "max_tokens": 12}
    together = cluster.complete("And the LORD", seed=7, n=3, **options)["choices"]
    alone = [cluster.complete("And the LORD", seed=7 + index, **options)["choices"][0] for index in range(3)]
    assert [choice["text"] for choice in together] == [choice["text"] for choice in alone]


@pytest.mark.parametrize(
    ("name", "prompt"), [("prefill", "Hear the word of the LORD. " * 20), ("master", "The module defines. " * 20)]
)
def test_what_is_cached_survives_the_death_of_a_process(cluster: Cluster, name: str, prompt: str) -> None:
    tokens = cluster.complete(prompt)["usage"]["prompt_tokens"]
    wait_for(lambda: cluster.cache().num_writing == 0)
    before = cluster.cache().num_objects
    pid = cluster.kill(name)
    cluster.wait_until_back(name, pid)
    wait_for(lambda: all(member.state == "ready" for member in cluster.status().members))
    wait_for(lambda: cluster.cache().num_objects >= before)
    assert cached(cluster.complete(prompt)) == (tokens - 1) // 32 * 32
    assert cluster.cache().problems == []


async def _send(http: httpx.AsyncClient, body: dict[str, Any], cut_after: int | None) -> str:
    """Streams a completion; hangs up after so many events."""
    seen = 0
    async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            seen += 1
            if cut_after is not None and seen > cut_after:
                return "cut"
            if line == "data: [DONE]":
                return "done"
            assert "error" not in msgspec.json.decode(line[6:])
    return "ended early"


async def _load(cluster: Cluster, requests: int, concurrency: int) -> list[str]:
    """Requests of which every third hangs up midway."""
    draw = random.Random(1)
    slots = asyncio.Semaphore(concurrency)

    async with httpx.AsyncClient(base_url=cluster.state.gateway_url, timeout=60) as http:

        async def one(number: int) -> str:
            prompt = [draw.randrange(2, 2000) for _ in range(draw.randrange(1, 150))]
            body = cluster.body(prompt, model="demo", max_tokens=40, ignore_eos=True)
            async with slots:
                return await _send(http, body, draw.randrange(0, 2) if number % 3 == 0 else None)

        return await asyncio.gather(*(one(number) for number in range(requests)))


def test_the_books_are_right_after_300_requests_of_which_a_third_hangs_up(cluster: Cluster) -> None:
    asyncio.run(_load(cluster, 30, 8))  # warms up connections and threads
    names = [member.name for member in cluster.status().members]
    before = {name: resources(cluster.pid(name)) for name in names}
    outcomes = asyncio.run(_load(cluster, 300, 8))
    assert outcomes.count("done") == 200
    assert outcomes.count("cut") == 100
    wait_for(lambda: cluster.status().num_requests == 0)
    wait_for(lambda: cluster.cache().num_writing == 0)

    def all_free() -> bool:
        loads = [member.load for member in cluster.status().members if member.load]
        return len(loads) == 2 and all(load.free_blocks == load.num_blocks for load in loads)

    wait_for(all_free)
    assert cluster.cache().problems == []
    for name in names:
        files, threads = resources(cluster.pid(name))
        assert files <= before[name][0] + 3, f"{name} had {before[name]}, has {(files, threads)}"
        # Pools of threads grow with what ran at once; a thread left behind by each request that was cut would be 100.
        assert threads <= before[name][1] + 8, f"{name} had {before[name]}, has {(files, threads)}"


@pytest.mark.parametrize("victim", ["decode", "prefill", "store", "prefill-node", "master"])
def test_a_death_while_requests_run_hangs_nothing_and_the_next_request_works(cluster: Cluster, victim: str) -> None:
    pids: list[int] = []

    async def one(http: httpx.AsyncClient, number: int) -> str:
        prompt = [2 + (number * 31 + index * 7) % 2000 for index in range(400)]
        body = cluster.body(prompt, model="demo", max_tokens=60, ignore_eos=True, stream=True)
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        if answer.status_code != 200:
            return str(answer.status_code)
        return "done" if lines[-1] == "data: [DONE]" else "error" if '"error"' in lines[-1] else lines[-1]

    async def storm() -> list[str]:
        async with httpx.AsyncClient(base_url=cluster.state.gateway_url, timeout=60) as http:
            running = [asyncio.create_task(one(http, number)) for number in range(12)]
            await asyncio.sleep(0.3)
            pids.append(cluster.kill(victim))
            return await asyncio.gather(*running)

    outcomes = asyncio.run(storm())
    assert set(outcomes) == {"done"}
    cluster.wait_until_back(victim, pids[0])
    assert cluster.complete("In the beginning")["choices"][0]["finish_reason"] == "length"
    wait_for(lambda: cluster.status().num_requests == 0, 90)
    assert cluster.cache().problems == []


def test_stopping_is_quick_and_leaves_nothing(cluster: Cluster) -> None:
    pids = [member.pid for member in cluster.status().members]
    assert cluster.stop() < STOPPED_S
    assert [pid for pid in pids if alive(pid)] == []
    assert list((cluster.folder / "mooncake").rglob("*.json")) == []
