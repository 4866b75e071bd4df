"""mooncake config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mooncake_cli import console, exits
from mooncake_cli.options import config_options, json_option, load


@click.group("config", help="Show, validate and write configurations.")
def command() -> None:
    """The group."""


@command.command("show", help="Print the effective configuration.")
@config_options
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@json_option
def show(config_path: Path | None, overrides: tuple[str, ...], origin: bool, as_json: bool) -> None:
    import msgspec
    import yaml

    from mooncake_core.config.build import readable
    from mooncake_core.config.documents import redacted

    loaded = load(config_path, overrides)
    config = redacted(loaded.config)
    if origin:
        values = dict(_leaves(readable(config), ""))
        rows = [{"path": path, "value": value, "origin": loaded.origin(path)} for path, value in values.items()]
        if as_json:
            console.json({"values": rows})
        else:
            console.table(["path", "value", "origin"], [[row["path"], row["value"], row["origin"]] for row in rows])
    elif as_json:
        console.json({"config": msgspec.to_builtins(config)})
    else:
        console.data(yaml.safe_dump(readable(config), sort_keys=False), end="")


@command.command("validate", help="Check configurations; print every problem of each.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def validate(paths: tuple[Path, ...], as_json: bool) -> int:
    from mooncake_core.config.load import load_config
    from mooncake_core.errors import ConfigError

    results: list[dict[str, Any]] = []
    for path in paths:
        problems: list[str] = []
        try:
            load_config(path, environ=os.environ)
        except ConfigError as error:
            problems = error.problems
        results.append({"file": str(path), "valid": not problems, "problems": problems})
    if as_json:
        console.json({"files": results})
    else:
        for result in results:
            for problem in result["problems"]:
                console.error(problem)
            if result["valid"]:
                console.data(f"{result['file']}: valid")
    return exits.DONE if all(result["valid"] for result in results) else exits.USAGE


@command.command("schema", help="Print the JSON Schema of the YAML, for editors.")
def schema() -> None:
    import json

    from mooncake_core.config.documents import json_schema

    console.data(json.dumps(json_schema(), indent=2))


@command.command("init", help="Write a commented YAML with all defaults; to stdout without FILE.")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def init(path: Path | None, force: bool) -> None:
    from mooncake_core.config.documents import commented_yaml
    from mooncake_core.config.schema import ClusterConfig
    from mooncake_core.errors import UsageError

    text = commented_yaml(ClusterConfig())
    if path is None:
        console.data(text, end="")
        return
    if path.exists() and not force:
        raise UsageError(f"{path} exists already: choose another file, or --force")
    path.write_text(text)
    console.note(f"wrote {path}; start it with `mooncake start --role all -c {path}`")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None or not value:
        yield path, value
        return
    for key, item in inner:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))
