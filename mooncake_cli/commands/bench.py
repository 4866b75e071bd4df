"""mooncake bench: one module per benchmark."""

from __future__ import annotations

import signal
from functools import partial

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
@click.pass_context
def command(context: click.Context) -> None:
    """The group. SIGTERM and SIGHUP are to them what Ctrl-C is: they end the processes that they have started, and say what was
    measured."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        before = signal.signal(number, signal.default_int_handler)
        context.call_on_close(partial(signal.signal, number, before))


command.add_command(bench_calibrate.command)
command.add_command(bench_pairs.command)
command.add_command(bench_scheduler.command)
command.add_command(bench_serve.command)
command.add_command(bench_store.command)
command.add_command(bench_trace.command)
command.add_command(bench_transfer.command)
