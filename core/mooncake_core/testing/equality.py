"""Greedy tokens of a cluster against transformers' own generate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from mooncake_core.testing.cluster import Cluster
from mooncake_core.testing.models import Difference, Reference


@dataclass(slots=True)
class Outcome:
    """What a comparison found."""

    compared: int = 0
    excused: list[Difference] = field(default_factory=list)
    wrong: list[Difference] = field(default_factory=list)
    cached_tokens: int = 0


def draw_prompts(count: int, longest: int, vocab_size: int, seed: int = 17) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens, drawn by the seed; the first two have the extreme lengths."""
    draw = random.Random(seed)
    lengths = [1, longest, *(draw.randint(1, longest) for _ in range(count - 2))]
    return [[draw.randrange(2, vocab_size) for _ in range(length)] for length in lengths[:count]]


def expected_tokens(
    reference: Reference, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[tuple[list[int], list[float]]]:
    """generate's tokens and margins for each prompt; made once and used for many clusters."""
    return [reference.generate(prompt, max_new_tokens) for prompt in prompts]


def compare(
    cluster: Cluster,
    prompts: Sequence[list[int]],
    expected: Sequence[tuple[list[int], list[float]]],
    *,
    concurrency: int = 8,
) -> Outcome:
    """Sends all prompts and compares token for token."""
    answers = asyncio.run(_answers(cluster, prompts, len(expected[0][0]), concurrency))
    outcome = Outcome(compared=len(prompts))
    for (tokens, margins), (got, cached) in zip(expected, answers, strict=True):
        outcome.cached_tokens += cached
        for index, (theirs, ours) in enumerate(zip(tokens, got, strict=True)):
            if theirs != ours:
                difference = Difference(index, theirs, ours, margins[index])
                (outcome.excused if difference.excused else outcome.wrong).append(difference)
                break  # what follows an excused difference may differ rightly
    return outcome


async def _answers(
    cluster: Cluster, prompts: Sequence[list[int]], max_new_tokens: int, concurrency: int
) -> list[tuple[list[int], int]]:
    slots = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=cluster.state.gateway_url, timeout=300) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]

        async def one(prompt: list[int]) -> tuple[list[int], int]:
            body = {
                "model": model,
                "prompt": prompt,
                "temperature": 0,
                "max_tokens": max_new_tokens,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            async with slots:
                answer = await http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            parsed = answer.json()
            cached = parsed["usage"]["prompt_tokens_details"]["cached_tokens"]
            return parsed["choices"][0]["token_ids"], cached

        return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))
