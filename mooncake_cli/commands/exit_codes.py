"""mooncake exit-codes."""

from __future__ import annotations

import click

from mooncake_cli import console, exits
from mooncake_cli.options import json_option


@click.command("exit-codes", help="List the exit codes.")
@json_option
def command(as_json: bool) -> None:
    if as_json:
        console.json({"exit_codes": [{"code": code, "meaning": meaning} for code, meaning in exits.TABLE]})
    else:
        console.table(["code", "meaning"], exits.TABLE)
