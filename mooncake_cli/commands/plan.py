"""mooncake plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mooncake_cli import console, exits
from mooncake_cli.options import trace_options, trace_source
from mooncake_cli.quantities import DURATION, ListType, RangeType

if TYPE_CHECKING:
    from mooncake_core.bench.plan import Plan, Trial
    from mooncake_core.sim.load import Setup

HELP = """Find the smallest cluster that serves a trace within the objectives.

\b
Examples:
  mooncake plan --trace trace.jsonl --model configs/models/llama3-70b.yaml --hardware configs/hardware/a800-x8.yaml
  mooncake plan --trace trace.jsonl --model m.yaml --hardware h.yaml --ttft 10s --tbt 50ms --nodes 4..64 --out plan

Simulates clusters: numbers of nodes, splits into prefill and decode, policies, admissions, and the size of the pool in DRAM and
on disk. A node is a host as --hardware describes it, and runs one instance. Prints those to which no other that was simulated
is superior, and writes the YAML that starts the smallest one that does.
"""


@click.command("plan", help=HELP, short_help="Find the smallest cluster that serves a trace.")
@click.option("--trace", required=True, help="File or URL in any format that `mooncake trace formats` lists.")
@trace_options
@click.option("--model", required=True, type=click.Path(path_type=Path), help="A model's description (configs/models).")
@click.option(
    "--hardware", required=True, type=click.Path(path_type=Path), help="A host's description (configs/hardware)."
)
@click.option("--constants", type=click.Path(path_type=Path), help="YAML with the sections efficiency and engine.")
@click.option("--ttft", default="30s", show_default=True, type=DURATION, help="Objective: time to first token.")
@click.option("--tbt", default="100ms", show_default=True, type=DURATION, help="Objective: time between tokens.")
@click.option("--share", default=0.99, show_default=True, type=click.FloatRange(0, 1), help="Of requests, in both.")
@click.option("--nodes", default="4..64", show_default=True, type=RangeType(), help="Fewest and most.")
@click.option(
    "--policy", "policies", default="kvcache-centric,cache-aware", show_default=True, type=ListType(click.STRING)
)
@click.option("--admission", "admissions", default="none,predictive", show_default=True, type=ListType(click.STRING))
@click.option("--speed", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of the trace.")
@click.option("--limit", type=click.IntRange(1), help="Only so many requests from the beginning.")
@click.option("--price", type=click.FloatRange(0), help="Of a node per hour, for the table.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of all that is random.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for cluster.yaml and plan.json.")
def command(
    trace: str,
    model: Path,
    hardware: Path,
    constants: Path | None,
    ttft: float,
    tbt: float,
    share: float,
    nodes: tuple[int, int],
    policies: list[str],
    admissions: list[str],
    speed: float,
    limit: int | None,
    price: float | None,
    seed: int,
    as_json: bool,
    out: Path | None,
    **reading: Any,
) -> int:
    import msgspec

    from mooncake_core import registry, whole_file
    from mooncake_core.bench.plan import Planner, PlanSpace
    from mooncake_core.bench.planned_cluster import cluster_yaml

    for kind, names in (("policy", policies), ("admission", admissions)):
        for name in names:
            registry.load(kind, name)
    setup = _setup(model, hardware, constants, ttft=ttft, tbt=tbt, speed=speed, seed=seed)
    space = PlanSpace(fewest_nodes=nodes[0], most_nodes=nodes[1], share=share, policies=policies, admissions=admissions)
    source = trace_source(trace, **reading)
    plan = Planner(setup, source, space, limit=limit, tried=_tell).plan()
    text = cluster_yaml(setup, plan.best, hardware=hardware.stem, trace=trace) if plan.best else ""
    if as_json:
        console.json(msgspec.to_builtins(plan))
    else:
        _print(plan, setup, price)
    if out is not None:
        console.json_file(out / "plan.json", plan)
        if text:
            whole_file.write(out / "cluster.yaml", text.encode())
    elif text and not as_json:
        console.data(f"\n{text}", end="")
    if plan.best is None:
        console.error(
            f"{nodes[1]} nodes do not serve {share:.0%} of the requests within the objectives",
            "allow more nodes, or longer times",
        )
        return exits.FAILED
    return exits.DONE


def _setup(
    model: Path, hardware: Path, constants: Path | None, *, ttft: float, tbt: float, speed: float, seed: int
) -> Setup:
    import msgspec

    from mooncake_core.config.load import load_record
    from mooncake_core.sim.load import describe
    from mooncake_core.sim.settings import SimulationConfig, SloSettings

    config = load_record(constants, SimulationConfig) if constants else SimulationConfig()
    config = msgspec.structs.replace(
        config,
        model=str(model),
        hardware=str(hardware),
        slo=SloSettings(ttft=ttft, tbt=tbt),
        speed=speed,
        seed=seed,
        sample_interval=0.0,
        engine=msgspec.structs.replace(config.engine, disk=True),  # how much of it is used is the plan's business
    )
    return describe(config, Path())


def _tell(trial: Trial) -> None:
    outcome = "given up" if trial.goodput_ratio is None else f"{trial.goodput_ratio:.2%} within the objectives"
    missed = f"{trial.missed_ttft} too late for TTFT, {trial.missed_tbt} for TBT"
    choice = trial.choice
    console.note(f"{trial.prefill} + {trial.decode}, {choice.policy}, {choice.admission}: {outcome}; {missed}")


def _print(plan: Plan, setup: Setup, price: float | None) -> None:
    from mooncake_core.units import format_size

    columns = ["", "nodes", "prefill", "decode", "policy", "admission", "pool DRAM", "pool disk", "goodput"]
    rows = []
    for trial in plan.frontier:
        choice = trial.choice
        row = ["*" if trial == plan.best else "", trial.nodes, trial.prefill, trial.decode]
        row += [
            choice.policy,
            choice.admission,
            *(format_size(size * trial.nodes) for size in (choice.dram, choice.disk)),
        ]
        row += [f"{trial.goodput_ratio:.2%}", *([f"{trial.nodes * price:g}"] if price is not None else [])]
        rows.append(row)
    console.table([*columns, *(["per hour"] if price is not None else [])], rows)
