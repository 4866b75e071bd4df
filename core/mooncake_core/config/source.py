"""YAML as a tree that knows where each value stands, with environment variables filled in and `--set` laid over it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from mooncake_core.config.syntax import explain

VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DECIMAL: Final = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FRACTION: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: file:line:column, or the flag that set it."""

    name: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


@dataclass(slots=True)
class Value:
    """A scalar, list or mapping, and its place."""

    content: Any
    """str, int, float, bool, None, list[Value] or dict[str, Value]."""
    place: Place
    text: str = ""
    """A scalar as it was written."""
    variables: tuple[str, ...] = ()
    """Environment variables it was made of."""
    key: Place | None = None
    """Where its key stands, in a mapping of the file."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where."""

    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.path}: {self.message}" if self.path else f"{self.place}: {self.message}"


class Source:
    """Reads YAML text into a Value tree; collects problems instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[Problem] = []

    def read(self, text: str, name: str, path: str = "") -> Value:
        """The tree of a document, which is to stand at `path`; an empty one is an empty mapping."""
        try:
            node = yaml.compose(text, Loader=_LOADER)
        except yaml.YAMLError as error:
            line, column, message = explain(error, text)
            self.problems.append(Problem(Place(name, line, column), path, f"not valid YAML: {message}"))
            return Value({}, Place(name))
        if node is None:
            return Value({}, Place(name, 1, 1))
        return self._value(node, name, path)

    def override(self, root: Value, setting: str) -> None:
        """Lays `a.b=c` over a tree; list elements are named by their number."""
        path, equals, text = setting.partition("=")
        place = Place(f"--set {setting}")
        if not equals or not all(path.split(".")):
            self.problems.append(Problem(place, "", "expected PATH=VALUE, such as decode.0.engine.device=cpu"))
            return
        known = len(self.problems)
        value = self.read(text, place.name, path) if text.strip() else Value("", place)
        self.problems[known:] = [replace(problem, place=place) for problem in self.problems[known:]]
        _stamp(value, place)
        error = _set(root, path.split("."), value)
        if error:
            self.problems.append(Problem(place, path, error))

    def _value(self, node: yaml.Node, name: str, path: str) -> Value:
        place = Place(name, node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, yaml.MappingNode):
            return Value(self._mapping(node, name, path), place)
        if isinstance(node, yaml.SequenceNode):
            return Value(
                [self._value(item, name, _join(path, str(index))) for index, item in enumerate(node.value)], place
            )
        text, variables = self._expand(str(node.value), place, path)
        plain = getattr(node, "style", None) not in ("'", '"', "|", ">")
        return Value(_scalar(text) if plain or variables else text, place, text, variables)

    def _mapping(self, node: yaml.MappingNode, name: str, path: str) -> dict[str, Value]:
        content: dict[str, Value] = {}
        for key_node, value_node in node.value:
            place = Place(name, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(place, path, "expected a name before the colon, got a list or a mapping"))
                continue
            key = str(key_node.value)
            inner = _join(path, key)
            first = content[key].key if key in content else None
            if first:
                self.problems.append(Problem(place, inner, f"expected each key once, got it again after {first}"))
            content[key] = self._value(value_node, name, inner)
            content[key].key = first or place
        return content

    def _expand(self, text: str, place: Place, path: str) -> tuple[str, tuple[str, ...]]:
        names: list[str] = []

        def replace(match: re.Match[str]) -> str:
            variable, default = match.group(1), match.group(2)
            names.append(variable)
            if variable not in self._environ and default is None:
                message = f"expected the environment variable {variable} to be set, or a default: ${{{variable}:-...}}"
                self.problems.append(Problem(place, path, message))
            return self._environ.get(variable) or default or ""

        return VARIABLE.sub(replace, text), tuple(names)


def _scalar(text: str) -> Any:
    """A plain scalar as people mean it: no octal, no base 60, no yes and no."""
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if _DECIMAL.fullmatch(text):
        return int(text)
    return float(text) if _FRACTION.fullmatch(text) and any(map(str.isdigit, text)) else text


def _set(root: Value, path: Sequence[str], value: Value) -> str:
    """Puts a value into the tree; the reason why that cannot be, or an empty text."""
    at = root
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        if key.isdigit():
            if at.content is None or at.content == {}:
                at.content = []
            if not isinstance(at.content, list) or int(key) > len(at.content):
                return f"there is no element {key} of {'.'.join(path[:depth])}"
            if int(key) == len(at.content):
                at.content.append(Value({}, value.place))
            if last:
                at.content[int(key)] = value
            at = at.content[int(key)]
        else:
            if at.content is None:
                at.content = {}
            if not isinstance(at.content, dict):
                return f"{'.'.join(path[:depth])} is no mapping"
            if last:
                at.content[key] = value
            at = at.content.setdefault(key, Value(None, value.place))
    return ""


def _stamp(value: Value, place: Place) -> None:
    value.place, value.key = place, None
    children = value.content.values() if isinstance(value.content, dict) else value.content
    for child in children if isinstance(value.content, dict | list) else ():
        _stamp(child, place)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
