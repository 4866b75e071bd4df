"""mooncake doctor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mooncake_cli import console, exits
from mooncake_cli.options import config_options, json_option

if TYPE_CHECKING:
    from mooncake_core.config.schema import ClusterConfig
    from mooncake_core.doctor import Finding

HELP = """Examine this machine, and say what to correct. Exit code 1 where something will not work.

\b
Examples:
  mooncake doctor
  mooncake doctor -c cluster.yaml
  mooncake doctor -c cluster.yaml ports memory
"""


@click.command("doctor", help=HELP)
@click.argument("checks", nargs=-1)
@config_options
@json_option
def command(checks: tuple[str, ...], config_path: Path | None, overrides: tuple[str, ...], as_json: bool) -> int:
    from mooncake_core.doctor import State, Subject
    from mooncake_core.doctor.examination import examine

    config, problems = _configuration(config_path, overrides)
    found = [*problems, *examine(Subject(config), checks)]
    if as_json:
        rows = [{"check": name, "state": said.state, "found": said.found, "fix": said.fix} for name, said in found]
        console.json({"findings": rows})
    else:
        console.table(
            ["check", "state", "found", "fix"], [[name, said.state, said.found, said.fix] for name, said in found]
        )
    return exits.FAILED if any(said.state is State.FAIL for _, said in found) else exits.DONE


def _configuration(
    path: Path | None, overrides: tuple[str, ...]
) -> tuple[ClusterConfig | None, list[tuple[str, Finding]]]:
    """The configuration that was named, if any; or what is wrong with it, one finding each."""
    from mooncake_core.config.load import load_config
    from mooncake_core.config.rules import findings
    from mooncake_core.doctor import fail, ok
    from mooncake_core.errors import ConfigError
    from mooncake_core.inference.models import model_findings

    named = path or os.environ.get("MOONCAKE_CONFIG")
    if not named:
        return None, []
    file = Path(named)
    try:
        loaded = load_config(file, overrides=overrides, environ=os.environ, rules=(findings, model_findings))
    except ConfigError as error:
        return None, [("configuration", fail(problem, "correct it there")) for problem in error.problems]
    return loaded.config, [("configuration", ok(f"{file} is valid"))]
