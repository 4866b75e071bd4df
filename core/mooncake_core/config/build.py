"""Turns a Value tree into typed records; collects every problem with its place."""

from __future__ import annotations

import difflib
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from mooncake_core.config.source import Place, Problem, Value
from mooncake_core.units import format_duration, format_size, parse_duration, parse_size

INVALID: Any = object()


class Builder:
    """Builds one tree; `problems` and `origins` (path → place and variables) are filled meanwhile."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.origins: dict[str, Value] = {}

    def build(self, value: Value, kind: Any, path: str = "") -> Any:
        """A value of type `kind`, or INVALID after noting why not."""
        self.origins[path] = value
        kind, meta = _unwrap(kind)
        if _is_optional(kind):
            if value.content is None:
                return None
            kind, inner = _unwrap(next(option for option in get_args(kind) if option is not types.NoneType))
            meta = inner or meta
        if isinstance(kind, type) and issubclass(kind, Struct):
            return self._struct(value, kind, path)
        if get_origin(kind) is list:
            return self._list(value, get_args(kind)[0], path)
        if get_origin(kind) is dict:
            return self._mapping(value, kind, path)
        if get_origin(kind) in (Union, types.UnionType):
            return self._alternative(value, kind, path)
        return self._scalar(value, kind, meta, path)

    def _struct(self, value: Value, kind: type[Struct], path: str) -> Any:
        content = {} if value.content is None else value.content
        if not isinstance(content, dict):
            return self._wrong(value, path, "a mapping")
        hints = get_type_hints(kind, include_extras=True)
        required = [field.name for field in msgspec.structs.fields(kind) if field.required]
        absent = {name: Value(None, value.place) for name in required if name not in content}
        fields: dict[str, Any] = {}
        for key, inner in (content | absent).items():
            inner_path = f"{path}.{key}" if path else key
            if key not in hints:
                self._unknown(inner, inner_path, key, list(hints))
                continue
            built = self.build(inner, hints[key], inner_path)
            if built is not INVALID:
                fields[key] = built
        return kind(**fields) if fields.keys() >= set(required) else INVALID

    def _list(self, value: Value, kind: Any, path: str) -> Any:
        if not isinstance(value.content, list):
            return self._wrong(value, path, "a list")
        built = [self.build(item, kind, f"{path}.{index}") for index, item in enumerate(value.content)]
        return [_stand_in(kind) if item is INVALID else item for item in built]

    def _mapping(self, value: Value, kind: Any, path: str) -> Any:
        content = {} if value.content is None else value.content
        if not isinstance(content, dict):
            return self._wrong(value, path, "a mapping")
        key_kind, inner_kind = get_args(kind)
        if inner_kind is Any:
            return {key: plain(inner) for key, inner in content.items()}
        _, key_meta = _unwrap(key_kind)
        built = {}
        for key, inner in content.items():
            inner_path = f"{path}.{key}" if path else key
            self._bounded(Value(key, inner.key or inner.place), key, key_meta, inner_path)
            built[key] = self.build(inner, inner_kind, inner_path)
        return {key: item for key, item in built.items() if item is not INVALID}

    def _alternative(self, value: Value, kind: Any, path: str) -> Any:
        """One value or a list of them, which the schema writes as T | list[T]."""
        one, several = get_args(kind)
        return self.build(value, several if isinstance(value.content, list) else one, path)

    def _scalar(self, value: Value, kind: Any, meta: Meta | None, path: str) -> Any:
        content = value.content
        unit = (meta.extra_json_schema or {}).get("x-unit") if meta else None
        if unit and isinstance(content, str | int | float) and not isinstance(content, bool):
            try:
                return parse_size(content) if unit == "bytes" else parse_duration(content)  # type: ignore[arg-type]
            except ValueError as error:
                return self._note(value.place, path, str(error))
        if get_origin(kind) is Literal:
            choices = get_args(kind)
            return content if content in choices else self._wrong(value, path, "one of " + ", ".join(choices))
        if kind is Any:
            return plain(value)
        if kind is str and isinstance(content, int | float) and not isinstance(content, bool):
            content = value.text
        if kind is float and isinstance(content, int) and not isinstance(content, bool):
            content = float(content)
        if not isinstance(content, kind) or (kind is int and isinstance(content, bool)):
            return self._wrong(value, path, _words(kind, unit))
        return self._bounded(value, content, meta, path)

    def _bounded(self, value: Value, content: Any, meta: Meta | None, path: str) -> Any:
        if meta is None:
            return content
        if meta.ge is not None and content < meta.ge:
            return self._wrong(value, path, f"{meta.ge} or more")
        if meta.gt is not None and content <= meta.gt:
            return self._wrong(value, path, f"more than {meta.gt}")
        if meta.le is not None and content > meta.le:
            return self._wrong(value, path, f"{meta.le} or less")
        if meta.pattern is not None and not re.search(meta.pattern, content):
            return self._wrong(value, path, "a name of lower-case letters, digits, dots and hyphens")
        return content

    def _unknown(self, value: Value, path: str, key: str, known: list[str]) -> None:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
        self._note(value.key or value.place, path, f"unknown key; {hint}")

    def _wrong(self, value: Value, path: str, expected: str) -> Any:
        return self._note(value.place, path, f"expected {expected}, got {_show(value.content)}")

    def _note(self, place: Place, path: str, message: str) -> Any:
        self.problems.append(Problem(place, path, message))
        return INVALID


def plain(value: Value) -> Any:
    """The tree without places."""
    if isinstance(value.content, dict):
        return {key: plain(inner) for key, inner in value.content.items()}
    if isinstance(value.content, list):
        return [plain(inner) for inner in value.content]
    return value.content


def readable(config: Struct) -> dict[str, Any]:
    """A record as people write it: sizes and durations with units where that is exact."""
    hints = get_type_hints(type(config), include_extras=True)
    return {name: _readable(getattr(config, name), hints[name]) for name in config.__struct_fields__}


def _readable(value: Any, kind: Any) -> Any:
    if isinstance(value, Struct):
        return readable(value)
    if isinstance(value, list):
        return [_readable(item, None) for item in value]
    if isinstance(value, dict):
        return {key: _readable(item, None) for key, item in value.items()}
    _, meta = _unwrap(kind)
    if meta and meta.extra_json_schema:
        return _with_unit(value, meta.extra_json_schema["x-unit"])
    return value


def _with_unit(value: Any, unit: str) -> Any:
    if value is None:
        return None
    text = format_duration(value) if unit == "seconds" else format_size(value)
    try:
        same = (parse_duration(text) if unit == "seconds" else parse_size(text)) == value
    except ValueError:
        same = False
    return text if same else value


def _unwrap(kind: Any) -> tuple[Any, Meta | None]:
    if get_origin(kind) is Annotated:
        inner, *metas = get_args(kind)
        return inner, next((meta for meta in metas if isinstance(meta, Meta)), None)
    return kind, None


def _stand_in(kind: Any) -> Any:
    """In a list, for an item that is wrong: those behind it keep their numbers, by which problems name them."""
    return _unwrap(kind)[0]()


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and types.NoneType in get_args(kind)


def _words(kind: type, unit: str | None) -> str:
    if unit == "bytes":
        return "a size like 4GiB"
    if unit == "seconds":
        return "a duration like 30s"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]


def _show(content: Any) -> str:
    if isinstance(content, dict):
        return "a mapping"
    if isinstance(content, list):
        return "a list"
    return "nothing" if content is None else msgspec.json.encode(content).decode()
