"""mooncake bench calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import config_options, json_option, load

if TYPE_CHECKING:
    from mooncake_core.bench.calibrate import Calibration

HELP = """Measure how long an engine's computations take, and fit the scheduler's cost model to it.

\b
Examples:
  mooncake bench calibrate -c configs/1p1d.yaml
  mooncake bench calibrate -c cluster.yaml --role decode --longest 32768 --out cost.yaml

Loads the engine of the configuration's first prefill (or decode) entry in this process, as the role does, and computes prompts
by length and prefix in place, and decode steps by batch and context. What it prints goes into the YAML below `engine`: the
scheduler then begins with it and goes on to correct it by what it sees. Nobody else should compute on the device meanwhile.
"""


@click.command("calibrate", help=HELP, short_help="Measure an engine, and fit the scheduler's cost model to it.")
@config_options
@click.option("--role", type=click.Choice(["prefill", "decode"]), default="prefill", show_default=True)
@click.option("--longest", default=8192, show_default=True, type=click.IntRange(64), help="Tokens of prompts.")
@click.option("--batch", type=click.IntRange(1), help="Largest decode batch.  [default: the engine's max_batch]")
@click.option(
    "--repeats", default=3, show_default=True, type=click.IntRange(1), help="Of each point; the median counts."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File for the YAML.")
@json_option
def command(
    config_path: Path | None,
    overrides: tuple[str, ...],
    role: str,
    longest: int,
    batch: int | None,
    repeats: int,
    out: Path | None,
    as_json: bool,
) -> int:
    import msgspec

    from mooncake_core import whole_file
    from mooncake_core.bench.calibrate import CalibrationLimits, calibrate, num_points
    from mooncake_core.errors import UsageError
    from mooncake_core.inference.loading import load_engine

    config = load(config_path, overrides).config
    entries = config.prefill if role == "prefill" else config.decode
    if not entries:
        raise UsageError(f"expected a {role} entry in the configuration, got none")
    section = entries[0]
    limits = CalibrationLimits(
        longest_prompt=longest,
        largest_batch=batch or section.engine.max_batch,
        chunk_tokens=section.engine.chunk_tokens,
        repeats=repeats,
    )
    engine = load_engine(config, section)
    try:
        found = calibrate(engine, limits, progress=progress.counter(num_points(engine, limits), "points"))
    finally:
        engine.close()
    text = _yaml(found)
    if out is not None:
        whole_file.write(out, text.encode())
    if as_json:
        console.json(msgspec.to_builtins(found))
    else:
        _print(found, text)
    return exits.DONE


def _print(found: Calibration, text: str) -> None:
    rows = [
        [kind, error.count, *(f"{value:.1%}" for value in (error.p50, error.p90, error.p99))]
        for kind, error in (("prefill", found.prefill_error), ("decode step", found.decode_error))
    ]
    console.table(["error of the fit", "points", "p50", "p90", "p99"], rows)
    console.data(text.rstrip())


def _yaml(found: Calibration) -> str:
    """For below `engine` in the cluster's YAML; seconds."""
    import msgspec
    import yaml

    cost = {name: float(f"{value:.4g}") for name, value in msgspec.structs.asdict(found.cost).items()}
    return str(yaml.safe_dump({"cost": cost}, sort_keys=False))
