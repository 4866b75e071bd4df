"""mooncake admin role."""

from __future__ import annotations

from typing import Any

import click

from mooncake_cli import console, exits
from mooncake_cli.options import ask, cluster_options, json_option


@click.command("role", help="Have an instance finish what it has, and join again as prefill or decode.")
@click.argument("instance")
@click.argument("role", type=click.Choice(["prefill", "decode"]))
@cluster_options
@json_option
def command(instance: str, role: Any, as_json: bool, **where: Any) -> int:
    from mooncake_core.wire.messages.envelope import Done
    from mooncake_core.wire.messages.membership import SwitchRole

    ask(SwitchRole(name=instance, role=role), Done, **where)
    if as_json:
        console.json({"instance": instance, "role": role})
    else:
        console.data(f"{instance} joins as {role} when it has finished what it has")
    return exits.DONE
