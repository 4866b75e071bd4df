"""mooncake bench scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import json_option
from mooncake_cli.quantities import ListType

if TYPE_CHECKING:
    from mooncake_core.bench.scheduler import SchedulerReport

HELP = """Measure how many decisions a second the Conductor makes.

\b
Examples:
  mooncake bench scheduler
  mooncake bench scheduler --instances 1000 --blocks 1000000 --matched 8,32,128 --policy least-loaded
  mooncake bench scheduler --instances 16 --lower 0.5

Half of the instances prefill, half of them decode; each has some requests. Three nodes have each prefix. A decision is from the
arrival of a request to its dispatch; a lifecycle adds the ends of prefill and request. Seconds are of processor time.
"""


@click.command("scheduler", help=HELP, short_help="Measure the Conductor's decisions per second.")
@click.option(
    "--instances",
    default="16,100,1000",
    show_default=True,
    type=ListType(click.IntRange(2)),
    help="Prefill and decode instances together.",
)
@click.option(
    "--blocks", default="100000,1000000", show_default=True, type=ListType(click.IntRange(1)), help="In the pool."
)
@click.option(
    "--matched", default="8,32,128", show_default=True, type=ListType(click.IntRange(0)), help="Blocks of each prompt."
)
@click.option(
    "--lower",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of each prefix, its tail, that lies below DRAM.",
)
@click.option("--decisions", default=5000, show_default=True, type=click.IntRange(1), help="For each cell.")
@click.option("--policy", default="kvcache-centric", show_default=True, help="Policy plugin.")
@click.option("--admission", default="predictive", show_default=True, help="Admission plugin.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of all that is random.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json.")
@json_option
def command(
    instances: list[int],
    blocks: list[int],
    matched: list[int],
    lower: float,
    decisions: int,
    policy: str,
    admission: str,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> int:
    import msgspec

    from mooncake_core.bench.scheduler import SchedulerLoad, measure_all

    loads = [
        SchedulerLoad(instances=number, blocks=held, matched=length, decisions=decisions, lower=lower)
        for number in instances
        for held in blocks
        for length in matched
    ]
    shown = progress.counter(len(loads), "cells")
    report = measure_all(loads, policy=policy, admission=admission, seed=seed, progress=shown)
    if out is not None:
        console.json_file(out / "report.json", report)
    if as_json:
        console.json(msgspec.to_builtins(report))
    else:
        _print(report)
    return exits.DONE


def _print(report: SchedulerReport) -> None:
    from mooncake_core.units import format_duration

    rows = [
        [
            cell.instances,
            cell.blocks,
            cell.matched,
            f"{cell.decisions_per_s:.0f}",
            f"{cell.lifecycles_per_s:.0f}",
            format_duration(cell.decision_s.p50),
            format_duration(cell.decision_s.p99),
        ]
        for cell in report.cells
    ]
    columns = ["instances", "blocks", "matched", "decisions/s", "lifecycles/s", "p50", "p99"]
    console.table(columns, rows)
