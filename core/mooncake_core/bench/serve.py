"""`mooncake bench serve`: a closed loop of streaming requests against any OpenAI-compatible URL."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import httpx
import msgspec
from msgspec import Struct

from mooncake_core.bench.statistics import Quantiles, quantiles, request_tbt
from mooncake_core.errors import PeerUnreachable, UsageError

WORDS: Final = tuple(
    "the king of a city and all his people went out to build file house class by night with one object that "  # noqa: SIM905
    "returns value from river land module day men said unto them when name list found no string morning in".split()
)
TOKENS_PER_WORD: Final = 1.4
"""A first guess; what the server counts is reported."""


class ServeSettings(Struct, frozen=True, kw_only=True):
    """What to send."""

    url: str
    model: str = ""
    """Empty: the first one the server lists."""
    requests: int = 100
    concurrency: int = 8
    prompt_tokens: int = 256
    """About so many."""
    output_tokens: int = 32
    shared_prefix: float = 0.5
    """Share of each prompt that is the same in all."""
    seed: int = 0
    timeout_s: float = 120.0


class Sample(Struct, frozen=True, kw_only=True):
    """One request as the client saw it."""

    status: int
    error: str = ""
    ttft_s: float = 0.0
    gaps_s: list[float] = []
    total_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class ServeReport(Struct, frozen=True, kw_only=True):
    """What was measured. Times in seconds; TBT is per request the mean of its slowest tenth of gaps."""

    settings: ServeSettings
    duration_s: float
    succeeded: int
    failed: dict[str, int]
    """Reason → count."""
    ttft_s: Quantiles | None
    tbt_s: Quantiles | None
    gap_s: Quantiles | None
    total_s: Quantiles | None
    cached_tokens: Quantiles | None
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    cached_share: float


async def bench_serve(settings: ServeSettings, on_progress: Callable[[int], None]) -> ServeReport:
    """Runs the load; `on_progress` is told how many requests have ended.

    Raises:
        PeerUnreachable: nobody answers at the URL.
        UsageError: the server lists no model.
    """
    async with httpx.AsyncClient(base_url=settings.url, timeout=settings.timeout_s, limits=_limits(settings)) as http:
        model = settings.model or await _first_model(http, settings.url)
        prompts = make_prompts(settings)
        samples: list[Sample] = []
        queue = iter(prompts)
        started = time.perf_counter()

        async def worker() -> None:
            for prompt in queue:  # one iterator for all workers: each prompt is sent once
                samples.append(await _request(http, model, prompt, settings))
                on_progress(len(samples))

        await asyncio.gather(*(worker() for _ in range(settings.concurrency)))
    return _report(settings, samples, time.perf_counter() - started)


def make_prompts(settings: ServeSettings) -> list[str]:
    """Prompts of words, drawn by the seed; all begin alike for the shared share of their length."""
    draw = random.Random(settings.seed)
    num_words = max(1, round(settings.prompt_tokens / TOKENS_PER_WORD))
    num_shared = round(num_words * settings.shared_prefix)
    shared = [draw.choice(WORDS) for _ in range(num_shared)]
    return [
        " ".join([*shared, *(draw.choice(WORDS) for _ in range(num_words - num_shared))])
        for _ in range(settings.requests)
    ]


async def _first_model(http: httpx.AsyncClient, url: str) -> str:
    try:
        answer = await http.get("/v1/models")
        listed = answer.raise_for_status().json()["data"]
    except httpx.HTTPStatusError as error:
        raise PeerUnreachable(f"{url}/v1/models answered {error.response.status_code}") from error
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise PeerUnreachable(f"{url} does not answer like an OpenAI-compatible server: {error}") from error
    if not listed:
        raise UsageError(f"{url} serves no model now")
    return str(listed[0]["id"])


async def _request(http: httpx.AsyncClient, model: str, prompt: str, settings: ServeSettings) -> Sample:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": settings.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        return await _stream(http, body)
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        return Sample(status=0, error=type(error).__name__)


async def _stream(http: httpx.AsyncClient, body: dict[str, Any]) -> Sample:
    started = before = time.perf_counter()
    gaps: list[float] = []
    usage: dict[str, Any] = {}
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            return Sample(status=answer.status_code, error=f"HTTP {answer.status_code}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = msgspec.json.decode(line[6:])
            if "error" in event:
                return Sample(status=200, error=str(event["error"].get("code")))
            usage = event.get("usage") or usage
            if event["choices"]:
                now = time.perf_counter()
                gaps.append(now - before)
                before = now
    details = usage.get("prompt_tokens_details") or {}
    return Sample(
        status=200,
        ttft_s=gaps[0] if gaps else 0.0,
        gaps_s=gaps[1:],
        total_s=time.perf_counter() - started,
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=details.get("cached_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
    )


def _report(settings: ServeSettings, samples: list[Sample], duration_s: float) -> ServeReport:
    good = [sample for sample in samples if not sample.error]
    prompt_tokens = sum(sample.prompt_tokens for sample in good)
    return ServeReport(
        settings=settings,
        duration_s=duration_s,
        succeeded=len(good),
        failed=dict(Counter(sample.error for sample in samples if sample.error)),
        ttft_s=quantiles([sample.ttft_s for sample in good]),
        tbt_s=quantiles([tbt for sample in good if (tbt := request_tbt(sample.gaps_s)) is not None]),
        gap_s=quantiles([gap for sample in good for gap in sample.gaps_s]),
        total_s=quantiles([sample.total_s for sample in good]),
        cached_tokens=quantiles([float(sample.cached_tokens) for sample in good]),
        requests_per_s=len(good) / duration_s,
        output_tokens_per_s=sum(sample.output_tokens for sample in good) / duration_s,
        prompt_tokens=prompt_tokens,
        cached_share=sum(sample.cached_tokens for sample in good) / max(1, prompt_tokens),
    )


def _limits(settings: ServeSettings) -> httpx.Limits:
    return httpx.Limits(max_connections=settings.concurrency + 1, max_keepalive_connections=settings.concurrency + 1)
