"""mooncake auth."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mooncake_cli import console
from mooncake_cli.options import json_option


@click.group("auth", help="Make the key that members of a cluster share.")
def command() -> None:
    """The group."""


@command.command("init", help="Write a new cluster key, readable by you only.")
@click.option("--file", "path", type=click.Path(path_type=Path), help="Default: ~/.config/mooncake/cluster.key")
@json_option
def init(path: Path | None, as_json: bool) -> None:
    from mooncake_core.wire.auth import ClusterKey

    path = (path or _default()).expanduser().absolute()
    ClusterKey.generate().write(path)
    if as_json:
        console.json({"key_file": str(path)})
        return
    console.note(f"wrote {path}; copy it to every host of the cluster, and add to the YAML:")
    console.data(f"auth:\n  key_file: {path}")


def _default() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "mooncake" / "cluster.key"
