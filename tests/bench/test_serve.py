"""The load on a server of a few lines: what it sends, what it measures, what it makes of failures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from mooncake_core.bench.compare import CompareRun
from mooncake_core.bench.completions import Sample, Timings
from mooncake_core.bench.serve import ServeReport, ServeRun, make_report
from mooncake_core.bench.workload import WORDS, ServeSettings
from mooncake_core.errors import AuthenticationFailed, PeerUnreachable, UsageError
from mooncake_core.gateway.generation import Timings as GatewayTimings

if TYPE_CHECKING:
    from conftest import Running

SMALL: dict[str, Any] = {"requests": 6, "concurrency": 3, "prompt_tokens": 14, "output_tokens": 4}


async def measure(url: str, api_key: str = "", **changes: Any) -> ServeReport:
    return await ServeRun(
        ServeSettings(url=url, **SMALL | changes), api_key=api_key, on_progress=lambda done: None
    ).execute()


async def test_an_unreachable_server_is_said_so() -> None:
    with pytest.raises(PeerUnreachable, match="does not answer like an OpenAI-compatible server"):
        await measure("http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://[::"])
async def test_what_is_no_url_is_said_so(url: str) -> None:
    with pytest.raises(UsageError, match="expected a URL like"):
        await measure(url)


async def test_a_closed_loop_keeps_so_many_under_way(server: Running) -> None:
    server.fake.gap_s = 0.01
    report = await measure(f"{server.url}/v1/")
    assert (report.succeeded, report.failed, report.unfinished, report.model) == (6, {}, 0, "fake")
    assert server.fake.most_under_way == 3
    assert report.ttft_s is not None
    assert report.gap_s is not None
    assert report.gap_s.count == 6 * 3
    assert report.total_s is not None
    assert report.total_s.p50 >= 0.04
    assert report.prompt_tokens == 6 * 14
    assert report.cached_share == pytest.approx(2 / 14)
    assert report.output_tokens_per_s == pytest.approx(24 / report.duration_s)
    assert report.breakdown is None
    assert report.goodput is None
    assert report.late_s is None


async def test_an_open_loop_sends_on_time_whatever_is_outstanding(server: Running) -> None:
    server.fake.gap_s = 0.1
    started = time.perf_counter()
    report = await measure(server.url, rate=200.0, arrivals="constant", requests=20)
    assert time.perf_counter() - started < 5
    assert server.fake.most_under_way >= 15
    assert report.succeeded == 20
    assert report.late_s is not None
    assert report.late_s.count == 20


async def test_requests_are_greedy_and_of_a_fixed_length_unless_told_otherwise(server: Running) -> None:
    await measure(server.url, cache_salt="s")
    body = server.fake.bodies[-1]
    assert (body["temperature"], body["max_tokens"], body["ignore_eos"], body["cache_salt"]) == (0, 4, True, "s")
    assert "seed" not in body
    assert server.fake.headers[-1]["x-mooncake-timings"] == "1"
    await measure(server.url, greedy=False, seed=5, requests=1)
    assert (server.fake.bodies[-1]["temperature"], server.fake.bodies[-1]["seed"]) == (1, 5)


async def test_extensions_that_a_server_refuses_are_left_out(server: Running) -> None:
    server.fake.refused = {"cache_salt", "return_token_ids"}
    report = await measure(server.url, cache_salt="s", keep_outputs=True)
    assert report.extensions == ["ignore_eos"]
    assert report.succeeded == 6
    assert not server.fake.refused & set(server.fake.bodies[-1])
    server.fake.refused = {"max_tokens"}
    with pytest.raises(UsageError, match="refuses the request: unknown parameter max_tokens"):
        await measure(server.url)


@pytest.mark.parametrize(("tokens_per_word", "words"), [(2.0, 50), (4.0, 25), (None, 71)])
async def test_prompts_are_as_long_as_the_server_counts(
    server: Running, tokens_per_word: float | None, words: int
) -> None:
    server.fake.tokens_per_word = tokens_per_word
    report = await measure(server.url, prompt_tokens=100)
    probe, *sent = [body["prompt"].split() for body in server.fake.bodies]
    assert set(probe) == set(WORDS)
    assert {len(prompt) for prompt in sent} == {words}
    assert report.prompt_tokens == (6 * 100 if tokens_per_word else 0)


async def test_both_sides_of_a_comparison_get_prompts_as_the_first_counts(
    server: Running, other_server: Running
) -> None:
    server.fake.tokens_per_word, other_server.fake.tokens_per_word = 2.0, 0.5
    settings = ServeSettings(url=server.url, **SMALL)
    await CompareRun(settings, other_server.url, pairs=2, on_progress=lambda done: None).execute()
    for each in (server, other_server):
        sent = [body["prompt"].split() for body in each.fake.bodies if body["max_tokens"] == 4]
        assert {len(prompt) for prompt in sent} == {7}


async def test_a_warm_run_sends_all_before_unmeasured(server: Running) -> None:
    report = await measure(server.url, warm=True)
    prompts = [body["prompt"] for body in server.fake.bodies[1:]]
    assert sorted(prompts[:6]) == sorted(prompts[6:])
    assert (len(prompts), report.succeeded) == (12, 6)


async def test_an_api_key_is_sent_and_a_wrong_one_is_said_so(server: Running) -> None:
    server.fake.api_key = "right"
    report = await measure(server.url, api_key="right")
    assert report.succeeded == 6
    assert "right" not in str(report)
    with pytest.raises(AuthenticationFailed, match="--api-key or set OPENAI_API_KEY"):
        await measure(server.url, api_key="wrong")


async def test_rejections_and_failures_are_counted_by_reason(server: Running) -> None:
    server.fake.statuses = {2: 429, 3: 503, 4: 500, 5: 429}
    report = await measure(server.url, concurrency=1, slo_ttft_s=60.0)
    assert report.failed == {"HTTP 429 rejected": 2, "HTTP 503 rejected": 1, "HTTP 500 rejected": 1}
    assert (report.rejected, report.rejection_rate) == (3, 0.5)
    assert report.goodput is not None
    assert (report.goodput.met, report.goodput.share) == (2, pytest.approx(1 / 3))


async def test_a_stream_cut_off_or_too_slow_is_a_failure(server: Running) -> None:
    server.fake.cut_off = True
    assert (await measure(server.url)).failed == {"stream cut off": 6}
    server.fake.cut_off = False
    server.fake.gap_s = 0.2
    assert (await measure(server.url, timeout_s=0.5)).failed == {"timeout after 0.5s": 6}


async def test_the_servers_own_account_is_summed_up(server: Running) -> None:
    server.fake.mooncake = {
        **msgspec.to_builtins(GatewayTimings(computed_s=0.4, exposed_s=0.1, attempts=2)),
        "unknown": 1,
    }
    found = (await measure(server.url)).breakdown
    assert found is not None
    assert found.exposed_share is not None
    assert (found.exposed_share.count, found.exposed_share.p50) == (6, pytest.approx(0.25))
    assert found.retried == 6
    server.fake.mooncake = {"computed_s": "soon"}
    assert (await measure(server.url)).breakdown is None


def test_goodput_counts_what_met_every_objective() -> None:
    settings = ServeSettings(url="", requests=5, slo_ttft_s=1.0, slo_tbt_s=0.1)
    samples = [
        Sample(status=200, ttft_s=0.9, gaps_s=[0.05] * 10),
        Sample(status=200, ttft_s=1.1, gaps_s=[0.05] * 10),
        Sample(status=200, ttft_s=0.9, gaps_s=[0.05] * 9 + [0.2]),
        Sample(status=200, ttft_s=0.9),
        Sample(status=429, error="HTTP 429"),
    ]
    report = make_report(settings, samples, duration_s=2.0)
    assert report.goodput is not None
    assert (report.goodput.met, report.goodput.requests_per_s, report.goodput.share) == (2, 1.0, 0.4)
    assert (report.requests_per_s, report.rejection_rate) == (2.0, 0.2)


def test_a_report_of_nothing_has_no_figures() -> None:
    report = make_report(ServeSettings(url="", requests=3, rate=1.0), [], duration_s=0.0)
    assert (report.succeeded, report.unfinished, report.requests_per_s, report.ttft_s) == (0, 3, 0.0, None)


def test_a_breakdown_leaves_out_what_was_not_told() -> None:
    samples = [
        Sample(status=200, timings=Timings(exposed_s=0.2, computed_s=0.0)),
        Sample(status=200, timings=Timings(exposed_s=0.4, computed_s=0.8)),
        Sample(status=200),
    ]
    found = make_report(ServeSettings(url=""), samples, duration_s=1.0).breakdown
    assert found is not None
    assert found.exposed_s is not None
    assert found.exposed_share is not None
    assert (found.exposed_s.count, found.exposed_share.count, found.exposed_share.p50) == (2, 1, 0.5)


async def test_a_comparison_alternates_and_finds_the_slower_one(server: Running, other_server: Running) -> None:
    server.fake.gap_s, other_server.fake.gap_s = 0.04, 0.01
    settings = ServeSettings(url=server.url, **SMALL)
    run = CompareRun(settings, other_server.url, pairs=4, on_progress=lambda done: None)
    report = await run.execute()
    assert [pair.url_first for pair in report.pairs] == [True, False, True, False]
    assert report.output_tokens_per_s is not None
    assert report.gap_p50 is not None
    assert report.output_tokens_per_s.high < 0.7
    assert report.gap_p50.low > 1.5
    prompts = [
        [body["prompt"] for body in each.fake.bodies if body["max_tokens"] == 4] for each in (server, other_server)
    ]
    assert sorted(prompts[0]) == sorted(prompts[1])
    assert len(set(prompts[0])) == 4 * 6
    assert run.samples["url"]
    assert report.unfinished == 0


async def test_a_comparison_with_a_server_that_answers_nothing_has_no_times(
    server: Running, other_server: Running
) -> None:
    other_server.fake.cut_off = True
    run = CompareRun(ServeSettings(url=server.url, **SMALL), other_server.url, pairs=1, on_progress=lambda done: None)
    report = await run.execute()
    assert (report.ttft_p50, report.gap_p50, report.output_tokens_per_s) == (None, None, None)
