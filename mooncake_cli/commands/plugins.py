"""mooncake plugins."""

from __future__ import annotations

import click

from mooncake_cli import console, exits
from mooncake_cli.options import json_option


@click.command("plugins", help="List transports, engines, policies and other plugins. Imports none, unless --check.")
@click.option("--check", is_flag=True, help="Load each, and say why where that fails. Exit code 1 if one does.")
@json_option
def command(check: bool, as_json: bool) -> int:
    from mooncake_core import registry

    rows = [
        {
            "kind": kind,
            "name": entry.name,
            "target": entry.value,
            "distribution": entry.dist.name if entry.dist else "",
            **({"state": _state(kind, entry.name)} if check else {}),
        }
        for kind in registry.GROUPS
        for entry in registry.installed(kind)
    ]
    if as_json:
        console.json({"plugins": rows})
    else:
        console.table(list(rows[0]), [list(row.values()) for row in rows])
    return exits.DONE if all(row.get("state", "available") == "available" for row in rows) else exits.FAILED


def _state(kind: str, name: str) -> str:
    from mooncake_core import registry
    from mooncake_core.errors import MooncakeError

    try:
        registry.load(kind, name)
    except MooncakeError as error:
        return str(error)
    return "available"
