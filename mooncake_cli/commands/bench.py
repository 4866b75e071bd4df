"""mooncake bench: one module per benchmark."""

from __future__ import annotations

import click

from mooncake_cli.commands import bench_serve


@click.group("bench", help="Measure a running cluster.")
def command() -> None:
    """The group."""


command.add_command(bench_serve.command)
