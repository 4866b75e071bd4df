"""`mooncake bench serve`: streaming requests to any OpenAI-compatible URL, in a closed or an open loop."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct

from mooncake_core.bench.completions import Sample, Server, connect
from mooncake_core.bench.statistics import Quantiles, quantiles, request_tbt
from mooncake_core.bench.workload import ServeSettings, arrival_times, make_prompts


class Goodput(Struct, frozen=True, kw_only=True):
    """Requests that met every objective that was set."""

    met: int
    requests_per_s: float
    share: float
    """Of all that ended, the rejected and the failed among them."""


class Breakdown(Struct, frozen=True, kw_only=True):
    """The server's account of where time went, of the requests for which it gave one."""

    queued_s: Quantiles | None
    fetched_s: Quantiles | None
    computed_s: Quantiles | None
    exposed_s: Quantiles | None
    """Exposed transfer time."""
    exposed_share: Quantiles | None
    """Exposed transfer time / prefill compute time, per request."""
    retried: int
    """Requests that lost an instance on the way."""


class ServeReport(Struct, frozen=True, kw_only=True):
    """What was measured. Times in seconds; TBT is per request the mean of its slowest tenth of gaps."""

    settings: ServeSettings
    model: str
    extensions: list[str]
    """Body fields beyond OpenAI's that the server took."""
    duration_s: float
    succeeded: int
    failed: dict[str, int]
    """Reason → count, rejections included."""
    rejected: int
    """Refused for load: 429 or 503."""
    rejection_rate: float
    unfinished: int
    """Under way, or not sent yet, when the run was interrupted."""
    ttft_s: Quantiles | None
    tbt_s: Quantiles | None
    gap_s: Quantiles | None
    total_s: Quantiles | None
    late_s: Quantiles | None
    """Open loop: how late the client itself sent."""
    cached_tokens: Quantiles | None
    breakdown: Breakdown | None
    goodput: Goodput | None
    requests_per_s: float
    output_tokens_per_s: float
    prompt_tokens: int
    cached_share: float


class ServeRun:
    """One run. `report` may be asked for at any time, also after an interrupt."""

    def __init__(
        self,
        settings: ServeSettings,
        *,
        api_key: str = "",
        tokens_per_word: float | None = None,
        check_prompts: Callable[[Sequence[str]], None] = lambda prompts: None,
        on_progress: Callable[[int], None],
    ) -> None:
        """`tokens_per_word` None asks the server; `check_prompts` may raise before the first prompt is sent."""
        self.settings = settings
        self.tokens_per_word = tokens_per_word
        self.prompts: list[str] = []
        self.samples: list[Sample] = []
        self.model = settings.model
        self.extensions: frozenset[str] = frozenset()
        self._api_key = api_key
        self._check_prompts = check_prompts
        self._on_progress = on_progress
        self._started_s = 0.0
        self._ended_s: float | None = None

    async def execute(self) -> ServeReport:
        """Sends everything.

        Raises:
            PeerUnreachable: nobody answers at the URL.
            AuthenticationFailed: the server wants another API key.
            UsageError: the server lists no model, or refuses such requests.
        """
        async with connect(self.settings, self._api_key) as server:
            self.model, self.extensions = server.model, server.extensions
            self.tokens_per_word = self.tokens_per_word or server.tokens_per_word
            self.prompts = make_prompts(self.settings, self.tokens_per_word)
            self._check_prompts(self.prompts)
            if self.settings.warm:
                await _closed_loop(server, self.prompts, self.settings, lambda sample: None)
            self._started_s = time.perf_counter()
            loop = _closed_loop if self.settings.rate is None else _open_loop
            await loop(server, self.prompts, self.settings, self._ended)
            self._ended_s = time.perf_counter()
        return self.report()

    def report(self) -> ServeReport:
        """What was measured until now."""
        ended_s = time.perf_counter() if self._ended_s is None else self._ended_s
        return make_report(
            self.settings,
            self.samples,
            duration_s=ended_s - self._started_s if self._started_s else 0.0,
            model=self.model,
            extensions=sorted(self.extensions),
        )

    def _ended(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._on_progress(len(self.samples))


def fresh_salt() -> str:
    """A cache salt that nobody used before."""
    return f"bench-{secrets.token_hex(8)}"


async def _closed_loop(
    server: Server, prompts: Sequence[str], settings: ServeSettings, on_end: Callable[[Sample], None]
) -> None:
    queue = iter(enumerate(prompts))

    async def worker() -> None:
        for index, prompt in queue:  # one iterator for all workers: each prompt is sent once
            on_end(await server.complete(index, prompt, settings, time.perf_counter()))

    await asyncio.gather(*(worker() for _ in range(settings.concurrency)))


async def _open_loop(
    server: Server, prompts: Sequence[str], settings: ServeSettings, on_end: Callable[[Sample], None]
) -> None:
    """Sends at the times drawn, however many answers are outstanding.

    Times count from when a request was due, so that a client that falls behind does not make the server look better.
    """

    async def send(index: int, prompt: str, due_s: float) -> None:
        on_end(await server.complete(index, prompt, settings, due_s))

    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for index, (prompt, after_s) in enumerate(zip(prompts, arrival_times(settings), strict=True)):
            await asyncio.sleep(max(0.0, started_s + after_s - time.perf_counter()))
            tasks.create_task(send(index, prompt, started_s + after_s))


def make_report(
    settings: ServeSettings,
    samples: Sequence[Sample],
    *,
    duration_s: float,
    model: str = "",
    extensions: Sequence[str] = (),
) -> ServeReport:
    """Sums samples up."""
    good = [sample for sample in samples if not sample.error]
    rejected = sum(sample.rejected for sample in samples)
    prompt_tokens = sum(sample.prompt_tokens for sample in good)
    late_s = [sample.late_s for sample in samples] if settings.rate is not None else []
    return ServeReport(
        settings=settings,
        model=model,
        extensions=list(extensions),
        duration_s=duration_s,
        succeeded=len(good),
        failed=dict(Counter(sample.error for sample in samples if sample.error)),
        rejected=rejected,
        rejection_rate=rejected / max(1, len(samples)),
        unfinished=settings.requests - len(samples),
        ttft_s=quantiles([sample.ttft_s for sample in good]),
        tbt_s=quantiles([tbt for sample in good if (tbt := request_tbt(sample.gaps_s)) is not None]),
        gap_s=quantiles([gap for sample in good for gap in sample.gaps_s]),
        total_s=quantiles([sample.total_s for sample in good]),
        late_s=quantiles(late_s),
        cached_tokens=quantiles([float(sample.cached_tokens) for sample in good]),
        breakdown=_breakdown(good),
        goodput=_goodput(settings, samples, duration_s),
        requests_per_s=_per_second(len(good), duration_s),
        output_tokens_per_s=_per_second(sum(sample.output_tokens for sample in good), duration_s),
        prompt_tokens=prompt_tokens,
        cached_share=sum(sample.cached_tokens for sample in good) / max(1, prompt_tokens),
    )


def meets_slo(sample: Sample, settings: ServeSettings) -> bool:
    """Whether a request met every objective that is set; an answer of one token has no TBT to miss."""
    if sample.error:
        return False
    tbt_s = request_tbt(sample.gaps_s)
    in_ttft = settings.slo_ttft_s is None or sample.ttft_s <= settings.slo_ttft_s
    in_tbt = settings.slo_tbt_s is None or tbt_s is None or tbt_s <= settings.slo_tbt_s
    return in_ttft and in_tbt


def _goodput(settings: ServeSettings, samples: Sequence[Sample], duration_s: float) -> Goodput | None:
    if settings.slo_ttft_s is None and settings.slo_tbt_s is None:
        return None
    met = sum(meets_slo(sample, settings) for sample in samples)
    return Goodput(met=met, requests_per_s=_per_second(met, duration_s), share=met / max(1, len(samples)))


def _breakdown(good: Sequence[Sample]) -> Breakdown | None:
    timings = [sample.timings for sample in good if sample.timings is not None]
    if not timings:
        return None
    return Breakdown(
        queued_s=quantiles([found.queued_s for found in timings if found.queued_s is not None]),
        fetched_s=quantiles([found.fetched_s for found in timings if found.fetched_s is not None]),
        computed_s=quantiles([found.computed_s for found in timings if found.computed_s is not None]),
        exposed_s=quantiles([found.exposed_s for found in timings if found.exposed_s is not None]),
        exposed_share=quantiles(
            [
                found.exposed_s / found.computed_s
                for found in timings
                if found.exposed_s is not None and found.computed_s
            ]
        ),
        retried=sum(found.attempts > 1 for found in timings),
    )


def _per_second(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
