"""`mooncake bench serve --against`: two servers, or two ways of one, under the same load, in alternating pairs of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
from msgspec import Struct

from mooncake_core.bench.completions import Sample
from mooncake_core.bench.serve import ServeReport, ServeRun, fresh_salt
from mooncake_core.bench.statistics import Estimate, Quantiles, median_ratio
from mooncake_core.bench.workload import ServeSettings

FEWEST_PAIRS: Final = 10


class Pair(Struct, frozen=True, kw_only=True):
    """Both servers, one right after the other, with the same prompts."""

    url_first: bool
    url: ServeReport
    against: ServeReport


class CompareReport(Struct, frozen=True, kw_only=True):
    """Ratios are url / against, the medians over pairs. Above 1 is better for tokens/s, below 1 for times."""

    settings: ServeSettings
    against: str
    pairs: list[Pair]
    output_tokens_per_s: Estimate | None
    ttft_p50: Estimate | None
    prefill_p50: Estimate | None
    """Of the computation of prompts, where both servers say how long it took."""
    gap_p50: Estimate | None
    unfinished: int
    """Pairs that an interrupt left out."""


class CompareRun:
    """One comparison. `report` may be asked for at any time; it has the pairs that are whole."""

    def __init__(
        self,
        settings: ServeSettings,
        against: str,
        *,
        against_kv_transfer: Literal["layers", "whole"] = "layers",
        pairs: int = FEWEST_PAIRS,
        api_key: str = "",
        on_progress: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._against = against
        self._against_kv_transfer: Literal["layers", "whole"] = against_kv_transfer
        self._num_pairs = pairs
        self._api_key = api_key
        self._on_progress = on_progress
        self._tokens_per_word: float | None = None
        self._done = 0
        self._pairs: list[Pair] = []
        self.samples: dict[str, list[Sample]] = {"url": [], "against": []}

    async def execute(self) -> CompareReport:
        """Runs all pairs; which server goes first alternates, so that drift hits both alike.

        Raises: as ServeRun.execute.
        """
        for number in range(self._num_pairs):
            url_first = number % 2 == 0
            order = ("url", "against") if url_first else ("against", "url")
            runs = {side: await self._measure(side, number) for side in order}
            self._pairs.append(Pair(url_first=url_first, url=runs["url"], against=runs["against"]))
        return self.report()

    def report(self) -> CompareReport:
        """Of the pairs measured until now."""
        return make_report(self._settings, self._against, self._pairs, unfinished=self._num_pairs - len(self._pairs))

    async def _measure(self, side: str, number: int) -> ServeReport:
        # A seed per pair: what an earlier pair left in a cache must not help the next one.
        settings = msgspec.structs.replace(
            self._settings,
            url=self._settings.url if side == "url" else self._against,
            kv_transfer=self._settings.kv_transfer if side == "url" else self._against_kv_transfer,
            seed=self._settings.seed + number,
            cache_salt="" if self._settings.warm else fresh_salt(),
        )
        run = ServeRun(
            settings, api_key=self._api_key, tokens_per_word=self._tokens_per_word, on_progress=self._one_more
        )
        report = await run.execute()
        self._tokens_per_word = run.tokens_per_word  # as the first server counts: both are sent the same prompts
        self.samples[side].extend(run.samples)
        return report

    def _one_more(self, done: int) -> None:
        self._done += 1
        self._on_progress(self._done)


def make_report(settings: ServeSettings, against: str, pairs: Sequence[Pair], *, unfinished: int = 0) -> CompareReport:
    """Ratios of pairs; a pair in which a server answered nothing has no times to compare."""
    ttft_p50 = [
        (pair.url.ttft_s.p50, pair.against.ttft_s.p50) for pair in pairs if pair.url.ttft_s and pair.against.ttft_s
    ]
    prefill_p50 = [
        (ours.p50, theirs.p50) for pair in pairs if (ours := _prefill(pair.url)) and (theirs := _prefill(pair.against))
    ]
    gap_p50 = [(pair.url.gap_s.p50, pair.against.gap_s.p50) for pair in pairs if pair.url.gap_s and pair.against.gap_s]
    return CompareReport(
        settings=settings,
        against=against,
        pairs=list(pairs),
        output_tokens_per_s=median_ratio(
            [(pair.url.output_tokens_per_s, pair.against.output_tokens_per_s) for pair in pairs], settings.seed
        ),
        ttft_p50=median_ratio(ttft_p50, settings.seed),
        prefill_p50=median_ratio(prefill_p50, settings.seed),
        gap_p50=median_ratio(gap_p50, settings.seed),
        unfinished=unfinished,
    )


def _prefill(report: ServeReport) -> Quantiles | None:
    return report.breakdown.computed_s if report.breakdown else None
