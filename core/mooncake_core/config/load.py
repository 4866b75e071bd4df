"""Loads the cluster's YAML: every problem at once, every value with its origin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from mooncake_core.config.build import INVALID, Builder
from mooncake_core.config.rules import Finding, findings
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.config.source import Place, Problem, Source, Value
from mooncake_core.errors import ConfigError

R = TypeVar("R", bound=Struct)
RuleFor = Callable[[R], Iterable[Finding]]
Rule = Callable[[ClusterConfig], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and where it came from."""

    config: ClusterConfig
    path: Path | None
    values: Mapping[str, Value]

    def origin(self, path: str) -> str:
        """Where the value at a dotted path came from: a flag, the file (and the environment), or the default."""
        value = self.values.get(path)
        if value is None:
            return "default"
        variables = "".join(f", ${name}" for name in value.variables)
        return f"{value.place}{variables}"


def load_config(
    path: Path | None,
    *,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    rules: Sequence[Rule] = (findings,),
) -> Loaded:
    """The configuration in a file, or the defaults where there is none, with `--set` overrides on top.

    Raises:
        ConfigError: `problems` has a line for everything that is wrong.
    """
    source = Source(environ or {})
    root = source.read(_text(path), str(path)) if path else Value({}, Place("defaults"))
    for setting in overrides:
        source.override(root, setting)
    builder = Builder()
    config = _checked(source, builder, root, ClusterConfig, rules)
    return Loaded(config, path, builder.origins)


def load_record(path: Path, kind: type[R], *, needed: Sequence[str] = (), rules: Sequence[RuleFor[R]] = ()) -> R:
    """A record of another kind than the cluster's, such as a description of hardware; `needed` are the fields, dotted
    paths, that have no sensible default.

    Raises:
        ConfigError: `problems` has a line for everything that is wrong.
    """
    source = Source({})
    root = source.read(_text(path), str(path))
    builder = Builder()

    def missing(_: R) -> Iterable[Finding]:
        around = ((name, name.rpartition(".")[0]) for name in needed)
        return [
            Finding(name, "is missing")
            for name, section in around
            if name not in builder.origins and section in builder.origins
        ]

    record: R = _checked(source, builder, root, kind, (missing, *rules))
    return record


def _checked(source: Source, builder: Builder, root: Value, kind: type[R], rules: Sequence[RuleFor[R]]) -> R:
    """The record; raises ConfigError with all problems of syntax, types and rules."""
    record: R = builder.build(root, kind)
    known = {problem.place for problem in source.problems}  # what is wrong with a value twice is said once
    problems = [*source.problems, *(problem for problem in builder.problems if problem.place not in known)]
    if record is not INVALID:
        wrong = {problem.path for problem in problems}
        found = [finding for rule in rules for finding in rule(record) if not _rests_on(finding, wrong)]
        problems += [_located(builder, root, finding) for finding in _first_of_each(found)]
    if problems:
        problems.sort(key=lambda problem: (not problem.place.line, problem.place.line, problem.place.column))
        raise ConfigError("\n".join(map(str, problems)), problems=[str(problem) for problem in problems])
    return record


def _first_of_each(found: Iterable[Finding]) -> Iterable[Finding]:
    """A field that is missing is not also too small."""
    missing: set[str] = set()
    for finding in found:
        if finding.path not in missing:
            yield finding
        if finding.message == "is missing":
            missing.add(finding.path)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error


def _rests_on(finding: Finding, wrong: Iterable[str]) -> bool:
    """Whether a value that a finding is about, or one around it, was wrong: a default stands there in its stead."""
    paths = (finding.path, *finding.because)
    return any(not at or f"{path}.".startswith(f"{at}.") for at in wrong for path in paths)


def _located(builder: Builder, root: Value, finding: Finding) -> Problem:
    """Points at the value, or at one it follows from, or at the nearest one around it that was written down."""
    written = [path for path in (finding.path, *finding.because) if path in builder.origins]
    at = written[0] if written else finding.path
    while at and at not in builder.origins:
        at = at.rpartition(".")[0]
    value = builder.origins.get(at, root)
    return Problem(value.place, finding.path, finding.message)
