"""The benchmark's own arithmetic, and what it does when nobody answers."""

from __future__ import annotations

import pytest

from mooncake_core.bench.serve import ServeSettings, bench_serve, make_prompts
from mooncake_core.bench.statistics import quantiles, request_tbt
from mooncake_core.errors import PeerUnreachable


def test_quantiles_are_samples() -> None:
    found = quantiles([float(number) for number in range(100, 0, -1)])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.p90, found.p99) == (100, 50.5, 50, 90, 99)
    single = quantiles([3.0])
    assert single is not None
    assert (single.p50, single.p99) == (3.0, 3.0)
    assert quantiles([]) is None


def test_tbt_is_the_mean_of_the_slowest_tenth() -> None:
    assert request_tbt([1.0] * 18 + [5.0, 7.0]) == 6.0
    assert request_tbt([2.0]) == 2.0
    assert request_tbt([]) is None


def test_prompts_are_drawn_by_the_seed_and_share_their_beginning() -> None:
    settings = ServeSettings(url="", requests=20, prompt_tokens=140, shared_prefix=0.5)
    prompts = make_prompts(settings)
    assert prompts == make_prompts(settings)
    words = [prompt.split() for prompt in prompts]
    assert {len(parts) for parts in words} == {100}
    assert len({tuple(parts[:50]) for parts in words}) == 1
    assert len(set(prompts)) == 20


async def test_an_unreachable_server_is_said_so() -> None:
    with pytest.raises(PeerUnreachable, match="does not answer like an OpenAI-compatible server"):
        await bench_serve(ServeSettings(url="http://127.0.0.1:1"), lambda done: None)
