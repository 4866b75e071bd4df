"""mooncake bench: one module per benchmark."""

from __future__ import annotations

import click

from mooncake_cli.commands import (
    bench_calibrate,
    bench_pairs,
    bench_scheduler,
    bench_serve,
    bench_store,
    bench_trace,
    bench_transfer,
)


@click.group("bench", help="Measure a running cluster, or what this machine can do.")
def command() -> None:
    """The group."""


command.add_command(bench_calibrate.command)
command.add_command(bench_pairs.command)
command.add_command(bench_scheduler.command)
command.add_command(bench_serve.command)
command.add_command(bench_store.command)
command.add_command(bench_trace.command)
command.add_command(bench_transfer.command)
