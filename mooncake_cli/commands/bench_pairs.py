"""mooncake bench pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mooncake_cli import console, exits
from mooncake_cli.options import trace_options, trace_source
from mooncake_cli.quantities import DURATION

if TYPE_CHECKING:
    from mooncake_core.bench.pairs import PairsReport

HELP = """Compare policies and admissions with the paper's, at equal budgets for their parameters.

\b
Example:
  mooncake bench pairs conversation_trace.jsonl --config configs/sim/pairs.yaml --system four

Algorithm 1 with predictive rejection, and with admission headroom, get nine trials each on the beginning of the trace at twice
its speed. The best of each then serve the rest of it, and generated loads, at speeds 1 to 4. Beside that all pairs of policies
and admissions, on the rest of the trace at twice its speed.
"""


@click.command("pairs", help=HELP, short_help="Compare policies and admissions with the paper's.")
@click.argument("trace")
@trace_options
@click.option("--config", "config_path", required=True, type=click.Path(path_type=Path), help="The simulation's YAML.")
@click.option("--system", "name", help="The cluster.  [default: the first system of the YAML]")
@click.option("--split", default="30m", show_default=True, type=DURATION, help="The beginning is so long.")
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(1), help="Of each generated load.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="The first of them.")
@click.option("--requests", default=800, show_default=True, type=click.IntRange(1), help="Of each generated load.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.json.")
def command(
    trace: str,
    config_path: Path,
    name: str | None,
    split: float,
    seeds: int,
    seed: int,
    requests: int,
    as_json: bool,
    out: Path | None,
    **reading: Any,
) -> int:
    import msgspec

    from mooncake_core.bench.pairs import PairsRun, PairsScope
    from mooncake_core.errors import UsageError
    from mooncake_core.sim.load import load_simulation

    setup = load_simulation(config_path, os.environ)
    asked = list(trace_source(trace, **reading).read())
    if not any(one.arrival_s < split for one in asked) or asked[-1].arrival_s < split:
        raise UsageError(
            f"{trace}: expected requests before and after {split:g}s, the last comes at {asked[-1].arrival_s:g}s"
        )
    systems = {system.name: system for system in setup.config.systems}
    if name is not None and name not in systems:
        raise UsageError(f"no system called {name}; the configuration has {', '.join(systems)}")
    cluster = systems[name] if name is not None else setup.config.systems[0]
    scope = PairsScope(split_s=split, seeds=seeds, first_seed=seed, requests=requests)
    report = PairsRun(setup, cluster, asked, scope, console.note).execute()
    if out is not None:
        console.json_file(out / "report.json", report)
    if as_json:
        console.json(msgspec.to_builtins(report))
    else:
        _print(report)
    return exits.DONE


def _print(report: PairsReport) -> None:
    for trials in (report.papers, report.ours):
        best = max(trials, key=lambda trial: trial.goodput_ratio)
        values = ", ".join(f"{name} {value}" for name, value in best.parameters.items())
        console.data(f"{best.policy}, {best.admission}: best of {len(trials)} with {values}: {best.goodput_ratio:.1%}")
    rows = [
        [
            duel.load,
            f"{duel.speed:g}",
            duel.seeds,
            f"{duel.papers:.1%}",
            f"{duel.ours:.1%}",
            f"{duel.ours / duel.papers - 1:+.1%}" if duel.papers else "",
            f"{duel.worst - 1:+.1%}",
        ]
        for duel in report.duels
    ]
    console.table(["load", "speed", "seeds", "predictive", "headroom", "gain", "worst seed"], rows)
    admissions = list(dict.fromkeys(cell.admission for cell in report.table))
    policies = list(dict.fromkeys(cell.policy for cell in report.table))
    found = {(cell.policy, cell.admission): f"{cell.goodput_ratio:.1%}" for cell in report.table}
    console.table(["", *admissions], [[policy, *(found[policy, one] for one in admissions)] for policy in policies])
