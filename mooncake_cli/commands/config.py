"""mooncake config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mooncake_cli import console, exits
from mooncake_cli.options import config_file, config_options, json_option, load


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
            columns = ["path", "value", "origin"]
            console.table(columns, [[row["path"], _as_yaml(row["value"]), row["origin"]] for row in rows])
    elif as_json:
        console.json({"config": msgspec.to_builtins(config)})
    else:
        console.data(yaml.safe_dump(readable(config), sort_keys=False), end="")


@command.command("validate", help="Check configurations; print every problem of each.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@config_options
@json_option
def validate(paths: tuple[Path, ...], config_path: Path | None, overrides: tuple[str, ...], as_json: bool) -> int:
    named = [*paths, *([config_path] if config_path else [])] or [config_file(None)]
    results = [_checked(path, overrides) for path in named]
    if as_json:
        console.json({"files": results})
    else:
        for result in results:
            for problem in result["problems"]:
                console.error(problem)
            if result["valid"]:
                console.data(f"{result['file']}: valid")
    return exits.DONE if all(result["valid"] for result in results) else exits.USAGE


def _checked(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    from mooncake_core.config.load import load_config
    from mooncake_core.config.rules import findings
    from mooncake_core.errors import ConfigError
    from mooncake_core.inference.models import model_findings

    problems: list[str] = []
    try:
        load_config(path, overrides=overrides, environ=os.environ, rules=(findings, model_findings))
    except ConfigError as error:
        problems = error.problems
    return {"file": str(path), "valid": not problems, "problems": problems}


@command.command("schema", help="Print the JSON Schema of the YAML, for editors.")
@json_option
def schema(as_json: bool) -> None:
    import json

    from mooncake_core.config.documents import json_schema

    if as_json:
        console.json({"schema": json_schema()})
    else:
        console.data(json.dumps(json_schema(), indent=2))


@command.command("init", help="Write a commented YAML with all defaults; to stdout without FILE.")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@json_option
def init(path: Path | None, force: bool, as_json: bool) -> None:
    from mooncake_core import whole_file
    from mooncake_core.config.documents import commented_yaml
    from mooncake_core.config.schema import ClusterConfig
    from mooncake_core.errors import UsageError

    text = commented_yaml(ClusterConfig())
    if path is not None:
        if path.exists() and not force:
            raise UsageError(f"{path} exists already: choose another file, or --force")
        whole_file.write(path, text.encode())
    if as_json:
        console.json({"file": str(path)} if path else {"yaml": text})
    elif path is None:
        console.data(text, end="")
    else:
        console.note(f"wrote {path}; start it with `mooncake start --role all -c {path}`")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None or not value:
        yield path, value
        return
    for key, item in inner:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))


def _as_yaml(value: Any) -> str:
    """A scalar or an empty collection as one writes it in the file."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
