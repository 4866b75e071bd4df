"""mooncake bench."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mooncake_cli import console, exits
from mooncake_cli.options import cluster_options, find_running, json_option

if TYPE_CHECKING:
    from mooncake_core.bench.serve import ServeReport
    from mooncake_core.bench.statistics import Quantiles

QUIET_S = 2.0


@click.group("bench", help="Measure a running cluster.")
def command() -> None:
    """The group."""


@command.command("serve", help="Send streaming requests in a closed loop. Exit code 1 if one fails.")
@click.option("--url", help="Any OpenAI-compatible server. Default: the cluster that runs here.")
@click.option("--model", default="", help="Default: the first one the server lists.")
@click.option("--requests", default=100, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--concurrency", default=8, show_default=True, type=click.IntRange(1), help="So many at once.")
@click.option("--prompt-tokens", default=256, show_default=True, type=click.IntRange(1), help="About so many each.")
@click.option("--output-tokens", default=32, show_default=True, type=click.IntRange(1), help="Exactly so many each.")
@click.option(
    "--shared-prefix", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="Share all prompts begin with."
)
@click.option("--seed", default=0, show_default=True, help="Of the prompts.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds per request.")
@cluster_options
@json_option
def serve(
    url: str | None,
    timeout: float,
    as_json: bool,
    config_path: Path | None,
    overrides: tuple[str, ...],
    cluster: str | None,
    **load: object,
) -> int:
    import asyncio

    import msgspec

    from mooncake_core.bench.serve import ServeSettings, bench_serve

    url = url or find_running(config_path, overrides, cluster).url()
    settings = msgspec.convert({"url": url, "timeout_s": timeout, **load}, ServeSettings)
    report = asyncio.run(bench_serve(settings, _progress(settings.requests)))
    if as_json:
        console.json(msgspec.to_builtins(report))
    else:
        _print(report)
    return exits.FAILED if report.failed else exits.DONE


def _progress(total: int) -> Callable[[int], None]:
    """A line on a terminal that counts, for runs that take longer than QUIET_S."""
    started = time.monotonic()
    if not sys.stderr.isatty():
        return lambda done: None

    def show(done: int) -> None:
        if time.monotonic() - started > QUIET_S:
            sys.stderr.write(f"\r{done}/{total} requests" + ("\n" if done == total else ""))
            sys.stderr.flush()

    return show


def _print(report: ServeReport) -> None:
    from mooncake_core.units import format_duration

    rows = [
        _row("TTFT", report.ttft_s, format_duration),
        _row("TBT (slowest tenth)", report.tbt_s, format_duration),
        _row("gap between tokens", report.gap_s, format_duration),
        _row("whole request", report.total_s, format_duration),
        _row("cached tokens", report.cached_tokens, lambda value: f"{value:.0f}"),
    ]
    console.table(["", "samples", "mean", "p50", "p90", "p99"], rows)
    failed = ", ".join(f"{count} {reason}" for reason, count in report.failed.items())
    console.data(
        f"{report.succeeded} requests in {report.duration_s:.1f}s: {report.requests_per_s:.1f} requests/s, "
        f"{report.output_tokens_per_s:.0f} output tokens/s, "
        f"{report.cached_share:.1%} of {report.prompt_tokens} prompt tokens from the cache"
        + (f"; failed: {failed}" if failed else "")
    )


def _row(name: str, found: Quantiles | None, show: Callable[[float], str]) -> list[object]:
    if found is None:
        return [name, 0, "-", "-", "-", "-"]
    return [name, found.count, *(show(value) for value in (found.mean, found.p50, found.p90, found.p99))]
