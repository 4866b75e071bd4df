"""mooncake bench serve."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import cluster_options, find_running, json_option
from mooncake_cli.quantities import DURATION, URL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mooncake_core.bench.compare import CompareReport
    from mooncake_core.bench.completions import Sample
    from mooncake_core.bench.serve import ServeReport
    from mooncake_core.bench.statistics import Estimate, Quantiles
    from mooncake_core.bench.workload import ServeSettings

SEED_LIMIT: Final = 1 << 32

HELP: Final = """Send streaming requests to an OpenAI-compatible server.

\b
Examples:
  mooncake bench serve --concurrency 16 --slo-ttft 1s --slo-tbt 100ms
  mooncake bench serve --url http://host:8000 --rate 4 --warm --out results
  mooncake bench serve --url http://a:8000 --against http://b:8000

Exit code 1 if a request fails, or what was expected is missed. With --rate or an SLO a rejection (429, 503) is a
result, not a failure. With --against only --at-least decides.
"""


class Rival(NamedTuple):
    """What a server is compared with."""

    url: str
    kv_transfer: Literal["layers", "whole"]


class Run(Protocol):
    """What is under way, and can be asked for its report also when interrupted."""

    def execute(self) -> Coroutine[Any, Any, Any]: ...


@click.command("serve", help=HELP, short_help="Send streaming requests to an OpenAI-compatible server.")
@click.option("--url", type=URL, help="The server. Default: the cluster that runs here.")
@click.option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, default="", help="Sent as a bearer token.")
@click.option("--model", default="", help="Default: the first one the server lists.")
@click.option("--requests", default=100, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--concurrency", type=click.IntRange(1), help="Closed loop: so many at once. Default: 8.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Open loop: so many requests/s are sent.")
@click.option(
    "--arrivals", default="poisson", show_default=True, type=click.Choice(["poisson", "constant"]), help="With --rate."
)
@click.option(
    "--prompt-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="So many each, as the server counts.",
)
@click.option(
    "--output-tokens",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="So many each; exactly, where the server takes ignore_eos.",
)
@click.option(
    "--shared-prefix", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="Share all prompts begin with."
)
@click.option("--greedy/--sampled", default=True, help="Temperature 0, the default; or 1, seeded.")
@click.option(
    "--seed",
    type=click.IntRange(0, SEED_LIMIT),
    help="Of prompts and arrivals. Default: a fresh one, which is printed; 0 where outputs are saved or expected.",
)
@click.option("--warm/--cold", default=False, help="Send all once before, unmeasured. Default: nothing is cached yet.")
@click.option("--timeout", "timeout_s", default="120s", show_default=True, type=DURATION, help="Of a request.")
@click.option("--slo-ttft", "slo_ttft_s", type=DURATION, help="Goodput: longest time to first token.")
@click.option("--slo-tbt", "slo_tbt_s", type=DURATION, help="Goodput: longest time between tokens.")
@click.option("--against", type=URL, help="Compare with this server, in alternating pairs of runs.")
@click.option(
    "--against-whole",
    is_flag=True,
    help="Compare with this server moving KV before and after the computation, not layer by layer beside it.",
)
@click.option("--pairs", type=click.IntRange(10), help="With --against. Default: 10, the fewest.")
@click.option("--at-least", type=click.FloatRange(0), help="With --against: exit 1 if the tokens/s ratio is below.")
@click.option("--save-outputs", type=click.Path(path_type=Path), help="Write what was generated, as JSON lines.")
@click.option("--expect-outputs", type=click.Path(path_type=Path), help="Exit 1 if other outputs were generated.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json and plots.")
@cluster_options
@json_option
def command(
    url: str | None,
    api_key: str,
    against: str | None,
    against_whole: bool,
    pairs: int | None,
    at_least: float | None,
    save_outputs: Path | None,
    expect_outputs: Path | None,
    out: Path | None,
    as_json: bool,
    config_path: Path | None,
    overrides: tuple[str, ...],
    cluster: str | None,
    **load: Any,
) -> int:
    if against and against_whole:
        raise click.UsageError(
            "--against compares with another server, --against-whole with this one: give one of them"
        )
    _check_options(load, against_whole or against, pairs, at_least, save_outputs or expect_outputs)
    url = url or find_running(config_path, overrides, cluster).url()
    settings = _settings(url, load, keep_outputs=bool(save_outputs or expect_outputs))
    if against or against_whole:
        rival = Rival(against or url, "whole" if against_whole else "layers")
        return _compare(settings, rival, pairs, at_least, api_key, out, as_json)
    return _measure(settings, api_key, save_outputs, expect_outputs, out, as_json)


def _check_options(
    load: Mapping[str, Any], compares: object, pairs: int | None, at_least: float | None, outputs: Path | None
) -> None:
    """Refuses options that would be ignored."""
    if load["rate"] is not None and load["concurrency"] is not None:
        raise click.UsageError("--concurrency is of the closed loop, --rate of the open one: give one of them")
    if not compares and (pairs is not None or at_least is not None):
        raise click.UsageError("--pairs and --at-least belong to --against and --against-whole: give one of them")
    if outputs and compares:
        raise click.UsageError("outputs are saved and expected of one server: compare without them")
    if outputs and not load["greedy"]:
        raise click.UsageError("sampled outputs are not comparable: leave out --sampled")


def _settings(url: str, load: Mapping[str, Any], *, keep_outputs: bool) -> ServeSettings:
    """A cold run is made so by prompts that nobody sent before and by a salt of its own, where servers take one."""
    from mooncake_core.bench.serve import fresh_salt
    from mooncake_core.bench.workload import ServeSettings

    given = {name: value for name, value in load.items() if value is not None}
    fresh_seed = 0 if keep_outputs else secrets.randbelow(SEED_LIMIT)
    salt = "" if load["warm"] else fresh_salt()
    return ServeSettings(**{"url": url, "seed": fresh_seed, **given}, cache_salt=salt, keep_outputs=keep_outputs)


def _execute(run: Run) -> bool:
    """Whether the run came to its end; False after Ctrl-C."""
    import asyncio

    try:
        asyncio.run(run.execute())
    except KeyboardInterrupt:
        console.note("interrupted: what was measured until now")
        return False
    return True


def _measure(
    settings: ServeSettings,
    api_key: str,
    save_outputs: Path | None,
    expect_outputs: Path | None,
    out: Path | None,
    as_json: bool,
) -> int:
    from mooncake_core.bench import outputs
    from mooncake_core.bench.serve import ServeRun

    expected = outputs.load(expect_outputs) if expect_outputs else []

    def check(prompts: Sequence[str]) -> None:
        if expect_outputs:
            outputs.check_prompts(expect_outputs, expected, prompts)

    counter = progress.counter(settings.requests, "requests")
    run = ServeRun(settings, api_key=api_key, check_prompts=check, on_progress=counter)
    finished = _execute(run)
    report = run.report()
    _show(report, _print_serve, as_json)
    _write(out, report, {"": run.samples})
    if finished and not settings.warm and "cache_salt" not in run.extensions:
        console.note(
            f"this server takes no cache_salt: another run with --seed {settings.seed} may find its prompts cached"
        )
    got = outputs.outputs_of(run.samples, run.prompts)
    if save_outputs:
        outputs.save(save_outputs, got)
    if not finished:
        return exits.INTERRUPTED
    difference = outputs.first_difference(expected, got)
    if difference:
        console.error(f"{difference} (expected: {expect_outputs})")
    return exits.FAILED if difference or _has_failed(report) else exits.DONE


def _has_failed(report: ServeReport) -> bool:
    failures = sum(report.failed.values())
    measures_rejections = report.settings.rate is not None or report.goodput is not None
    return failures > (report.rejected if measures_rejections else 0)


def _compare(
    settings: ServeSettings,
    rival: Rival,
    pairs: int | None,
    at_least: float | None,
    api_key: str,
    out: Path | None,
    as_json: bool,
) -> int:
    from mooncake_core.bench.compare import FEWEST_PAIRS, CompareRun

    pairs = pairs or FEWEST_PAIRS
    run = CompareRun(
        settings,
        rival.url,
        against_kv_transfer=rival.kv_transfer,
        pairs=pairs,
        api_key=api_key,
        on_progress=progress.counter(2 * pairs * settings.requests, "requests"),
    )
    finished = _execute(run)
    report = run.report()
    name = "whole KV" if rival.kv_transfer == "whole" else rival.url
    _show(report, lambda shown: _print_comparison(shown, name), as_json)
    _write(out, report, {settings.url: run.samples["url"], name: run.samples["against"]})
    if not finished:
        return exits.INTERRUPTED
    ratio = report.output_tokens_per_s
    if at_least is not None and (ratio is None or ratio.median < at_least):
        found = "nothing to compare" if ratio is None else f"{ratio.median:.3f}"
        console.error(f"expected at least {at_least:g} times the tokens/s of {name}, found {found}")
        return exits.FAILED
    return exits.DONE


def _show(report: Any, show: Callable[[Any], None], as_json: bool) -> None:
    import msgspec

    if as_json:
        console.json(msgspec.to_builtins(report))
    else:
        show(report)


def _write(out: Path | None, report: Any, samples: Mapping[str, Sequence[Sample]]) -> None:
    """report.json and CDFs; without matplotlib the report alone."""
    if out is None:
        return
    from mooncake_core.bench.plots import plot_cdf
    from mooncake_core.errors import PluginUnavailable

    console.json_file(out / "report.json", report)
    ttft = {name: [sample.ttft_s for sample in some if not sample.error] for name, some in samples.items()}
    gaps = {name: [gap for sample in some for gap in sample.gaps_s] for name, some in samples.items()}
    try:
        plot_cdf(out / "ttft_cdf.png", "Time to first token", "TTFT (s)", ttft)
        plot_cdf(out / "gap_cdf.png", "Gaps between tokens", "gap (s)", gaps)
    except PluginUnavailable as error:
        console.note(str(error))


def _print_serve(report: ServeReport) -> None:
    from mooncake_core.units import format_duration

    rows = [
        _row("TTFT", report.ttft_s, format_duration),
        _row("TBT (slowest tenth)", report.tbt_s, format_duration),
        _row("gap between tokens", report.gap_s, format_duration),
        _row("whole request", report.total_s, format_duration),
        _row("cached tokens", report.cached_tokens, lambda value: f"{value:.0f}"),
    ]
    if report.breakdown and report.breakdown.exposed_s:
        rows.append(_row("exposed transfer", report.breakdown.exposed_s, format_duration))
        rows.append(_row("its share of prefill", report.breakdown.exposed_share, lambda value: f"{value:.1%}"))
    if report.late_s:
        rows.append(_row("sent late by", report.late_s, format_duration))
    console.table(["", "samples", "mean", "p50", "p90", "p99"], rows)
    for line in _summary(report):
        console.data(line)


def _summary(report: ServeReport) -> list[str]:
    """What is no distribution."""
    from mooncake_core.units import format_duration

    settings = report.settings
    lines = [
        f"{report.succeeded} requests in {report.duration_s:.1f}s: {report.requests_per_s:.1f} requests/s, "
        f"{report.output_tokens_per_s:.0f} output tokens/s, "
        f"{report.cached_share:.1%} of {report.prompt_tokens} prompt tokens from the cache"
    ]
    if report.goodput:
        goals = (("TTFT", settings.slo_ttft_s), ("TBT", settings.slo_tbt_s))
        wanted = " and ".join(f"{name} within {format_duration(limit)}" for name, limit in goals if limit is not None)
        lines.append(
            f"goodput: {report.goodput.requests_per_s:.1f} requests/s with {wanted} ({report.goodput.share:.1%} of all); "
            f"rejected: {report.rejection_rate:.1%}"
        )
    if report.breakdown and report.breakdown.retried:
        lines.append(f"retried: {report.breakdown.retried}")
    if report.failed:
        lines.append("failed: " + ", ".join(f"{count} {reason}" for reason, count in sorted(report.failed.items())))
    if report.unfinished:
        lines.append(f"not ended: {report.unfinished} of {settings.requests}")
    lines.append(
        f"model {report.model}, seed {settings.seed}, {'warm' if settings.warm else 'cold'}, {_loop(settings)}"
    )
    return lines


def _loop(settings: ServeSettings) -> str:
    if settings.rate is None:
        return f"{settings.concurrency} at once"
    return f"{settings.rate:g} requests/s offered, {settings.arrivals} arrivals"


def _print_comparison(report: CompareReport, against: str) -> None:
    rows = [
        _ratio_row("output tokens/s", report.output_tokens_per_s),
        _ratio_row("TTFT p50", report.ttft_p50),
        _ratio_row("prefill p50", report.prefill_p50),
        _ratio_row("gap p50", report.gap_p50),
    ]
    console.table(["ratio", "pairs", "median", "95% interval"], rows)
    console.data(f"{report.settings.url} / {against}, seed {report.settings.seed}, {_loop(report.settings)}")
    for name, side in ((report.settings.url, "url"), (against, "against")):
        failures = [getattr(pair, side).failed for pair in report.pairs]
        reasons = sorted({reason for failed in failures for reason in failed})
        for reason in reasons:
            console.data(f"{name}: {sum(failed.get(reason, 0) for failed in failures)} {reason}")
    if report.unfinished:
        console.data(f"not ended: {report.unfinished} of {report.unfinished + len(report.pairs)} pairs")


def _ratio_row(name: str, found: Estimate | None) -> list[object]:
    if found is None:
        return [name, 0, "-", "-"]
    return [name, found.count, f"{found.median:.3f}", f"{found.low:.3f} to {found.high:.3f}"]


def _row(name: str, found: Quantiles | None, show: Callable[[float], str]) -> list[object]:
    if found is None:
        return [name, 0, "-", "-", "-", "-"]
    return [name, found.count, *(show(value) for value in (found.mean, found.p50, found.p90, found.p99))]
