"""mooncake admin."""

from __future__ import annotations

import click

from mooncake_cli.commands import admin_copy, admin_drain, admin_evict, admin_pin, admin_role, admin_tasks


@click.group("admin", help="Drain nodes, copy, evict and pin objects: what an operator changes in a running pool.")
def command() -> None:
    """The group."""


for subcommand in (
    admin_drain.drain,
    admin_drain.undrain,
    admin_copy.copy,
    admin_copy.replicate,
    admin_evict.command,
    admin_pin.pin,
    admin_pin.unpin,
    admin_role.command,
    admin_tasks.command,
):
    command.add_command(subcommand)
