"""mooncake bench trace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import trace_options, trace_source
from mooncake_cli.quantities import DURATION

if TYPE_CHECKING:
    from mooncake_core.bench.trace import SystemReport, TraceReport, TraceResult

HELP = """Replay a trace through simulated clusters, side by side.

\b
Examples:
  mooncake bench trace trace.jsonl --config configs/sim/fast25-figure1.yaml
  mooncake bench trace trace.jsonl --config my.yaml --system mooncake --speed 2 --out report

TRACE is a file or URL in any format that `mooncake trace formats` lists; systems that serve a workload of the YAML need none.
The scheduler is that of a live cluster; instances, NICs and memory are modelled. The same configuration and seed give the same
result. Goodput counts requests that meet both objectives; the time between tokens of a request is the mean of the slowest tenth
of its gaps.
"""


@click.command("trace", help=HELP, short_help="Replay a trace through simulated clusters.")
@click.argument("trace", required=False)
@trace_options
@click.option("--config", "config_path", required=True, type=click.Path(path_type=Path), help="The simulation's YAML.")
@click.option("--system", "names", multiple=True, help="Only this one of its systems; may be repeated.")
@click.option("--speed", type=click.FloatRange(0, min_open=True), help="Requests come so much faster.")
@click.option("--seed", type=click.IntRange(0), help="Of all that is random.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Run so many seeds from --seed on.")
@click.option(
    "--capacity",
    type=click.FloatRange(0, 1, min_open=True),
    help="Find the speed at which such a share of requests still meets the objectives, by limit of TBT.",
)
@click.option("--ttft", type=DURATION, help="Objective: time to first token.")
@click.option("--tbt", type=DURATION, help="Objective: time between tokens.")
@click.option("--limit", type=click.IntRange(1), help="Only so many requests from the beginning.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, allow_dash=True), help="Write JSON; - prints it.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json and plots.")
def command(
    trace: str | None,
    config_path: Path,
    names: tuple[str, ...],
    speed: float | None,
    seed: int | None,
    seeds: int,
    capacity: float | None,
    ttft: float | None,
    tbt: float | None,
    limit: int | None,
    json_path: Path | None,
    out: Path | None,
    **reading: Any,
) -> int:
    import msgspec

    from mooncake_core.bench.trace import TraceRun
    from mooncake_core.sim.load import load_simulation

    config = load_simulation(config_path, os.environ)
    source = trace_source(trace, **reading) if trace else None
    run = TraceRun(config, source, names=names, speed=speed, seed=seed, ttft_s=ttft, tbt_s=tbt, limit=limit)
    result = run.execute(progress.counter(run.num_requests * seeds, "requests"), seeds=seeds)
    report = result.report
    if capacity is not None:
        report = msgspec.structs.replace(report, capacities=run.capacities(capacity))
    if json_path == Path("-"):
        console.json(msgspec.structs.asdict(report))
    else:
        _print(report)
        if json_path is not None:
            console.json_file(json_path, report)
    if out is not None:
        console.json_file(out / "report.json", report)
        _plot(out, result)
    return exits.DONE


def _print(report: TraceReport) -> None:
    columns = [
        "system",
        "requests",
        "goodput",
        "rejected",
        "TTFT mean",
        "p50",
        "p90",
        "TBT p50",
        "p90",
        "hit",
        "prefill",
    ]
    console.table([*columns, "CPU"], [_row(system) for system in report.systems])
    for system in report.systems:
        shares = ", ".join(f"{entry.tbt_s * 1e3:g}ms {entry.goodput_ratio:.1%}" for entry in system.thresholds)
        if shares:
            console.data(f"{system.name}: goodput by limit of TBT: {shares}")
        tenants = ", ".join(f"{name} {one.goodput_ratio:.1%} of {one.requests}" for name, one in system.tenants.items())
        if tenants:
            console.data(f"{system.name}: goodput by tenant: {tenants}")
        if system.rejected_for:
            causes = ", ".join(f"{count} at {cause}" for cause, count in system.rejected_for.items())
            loads = ", ".join(
                f"{pool} {swing.mean:.2f}, deviation {swing.deviation:.2f}" for pool, swing in system.swings.items()
            )
            console.data(f"{system.name}: rejected {causes}; load over objective: {loads}")
    if report.capacities:
        _print_capacities(report)
    if report.seeds:
        _print_seeds(report)


def _print_capacities(report: TraceReport) -> None:
    """By system and limit of the time between tokens."""
    rows = [
        [found.name, f"{limit * 1e3:.4g}ms", f"{speed:.3g}", f"{rate:.3g}/s"]
        for found in report.capacities
        for limit, speed, rate in zip(found.tbt_s, found.speeds, found.requests_per_s, strict=True)
    ]
    share = report.capacities[0].share
    console.table([f"{share:.0%} served well", "limit of TBT", "at speed", "arrivals"], rows)


def _print_seeds(report: TraceReport) -> None:
    """Means over seeds, and how far they are apart."""
    rows = []
    for system in report.systems:
        of_it = [result for result in report.seeds if result.name == system.name]
        ttfts = [result.ttft_s for result in of_it]
        hits = sum(result.hit_ratio for result in of_it) / len(of_it)
        prefill = sum(result.prefill_gpu_s for result in of_it) / len(of_it)
        mean = sum(ttfts) / len(of_it)
        cells = [f"{value:.3f}s" for value in (mean, min(ttfts), max(ttfts))]
        rows.append([system.name, len(of_it), *cells, f"{hits:.1%}", f"{prefill:.3f}s"])
    console.table(["over seeds", "", "TTFT mean", "lowest", "highest", "hit", "prefill"], rows)


def _row(system: SystemReport) -> list[object]:
    from mooncake_core.units import format_duration

    ttft, tbt = system.ttft_s, system.tbt_s
    return [
        system.name,
        system.requests,
        f"{system.goodput_ratio:.1%}",
        sum(system.rejected.values()) + system.unavailable,
        *(format_duration(value) for value in ((ttft.mean, ttft.p50, ttft.p90) if ttft else (0, 0, 0))),
        *(format_duration(value) for value in ((tbt.p50, tbt.p90) if tbt else (0, 0))),
        f"{system.hit_ratio.tokens:.1%}",
        format_duration(system.prefill_gpu_s),
        format_duration(system.cpu_s),
    ]


def _plot(out: Path, result: TraceResult) -> None:
    """The paper's plots; without matplotlib none."""
    from mooncake_core.bench.trace_plots import plot_all
    from mooncake_core.errors import PluginUnavailable

    try:
        plot_all(out, result)
    except PluginUnavailable as error:
        console.note(str(error))
