"""The configuration for readers: JSON Schema for editors, a commented YAML to begin with."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Final, get_type_hints

import msgspec
from msgspec import Struct

from mooncake_core.config import schema
from mooncake_core.config.build import readable
from mooncake_core.config.schema import ClusterConfig

REDACTED: Final = "***"


def descriptions(kind: type[Struct]) -> dict[str, str]:
    """Field → its docstring, own and inherited ones."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ == schema.__name__:
            found.update(_docstrings(base))
    return found


def json_schema() -> dict[str, Any]:
    """JSON Schema of the YAML; sizes and durations may be text with a unit."""
    (root,), components = msgspec.json.schema_components([ClusterConfig], ref_template="#/$defs/{name}")
    for name, component in components.items():
        texts = descriptions(getattr(schema, name))
        for field, entry in component.get("properties", {}).items():
            entry["description"] = texts.get(field, "")
            if "x-unit" in entry:
                entry["type"] = ["integer" if entry["x-unit"] == "bytes" else "number", "string"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": components}


def redacted(config: ClusterConfig) -> ClusterConfig:
    """The configuration for display: keys are not shown."""
    hidden: dict[str, schema.ApiKeys] = {
        tenant: REDACTED if isinstance(keys, str) else [REDACTED] * len(keys)
        for tenant, keys in config.gateway.api_keys.items()
    }
    master = config.master
    return msgspec.structs.replace(
        config,
        gateway=msgspec.structs.replace(config.gateway, api_keys=hidden),
        master=msgspec.structs.replace(master, admin_key=REDACTED if master.admin_key else ""),
    )


def commented_yaml(config: ClusterConfig) -> str:
    """A YAML with every key, its default and what it is for."""
    return "\n".join(_lines(config, readable(config), 0)) + "\n"


def _docstrings(kind: type) -> Iterator[tuple[str, str]]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in zip(body.body, body.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)


def _lines(config: Struct, values: dict[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    texts = descriptions(type(config))
    for name in get_type_hints(type(config)):
        value = getattr(config, name)
        yield from (f"{indent}# {line}" for line in texts.get(name, "").splitlines())
        if isinstance(value, Struct):
            yield f"{indent}{name}:"
            yield from _lines(value, values[name], depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], Struct):
            yield f"{indent}{name}:"
            yield from _items(value, values[name], depth + 1)
        else:
            yield f"{indent}{name}: {msgspec.json.encode(values[name]).decode()}"


def _items(items: list[Struct], values: list[dict[str, Any]], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for item, inner in zip(items, values, strict=True):
        lines = [line.removeprefix(indent + "  ") for line in _lines(item, inner, depth + 1)]
        yield f"{indent}- {lines[0]}"
        yield from (f"{indent}  {line}" for line in lines[1:])
