"""Reads a trace, whatever its format, and writes one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from mooncake_core.errors import UsageError
from mooncake_core.workload.fields import broken, split_csv
from mooncake_core.workload.formats import FORMATS, Format, ReadSettings
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.source import Line, read_lines

_KNOWN_SHARE: Final = 0.5
"""Of a format's fields must be there for it to be recognised: a line that is broken is one of its format still."""


@dataclass(frozen=True, slots=True)
class TraceSource:
    """A trace that is read as often as it is needed."""

    source: str
    """A file, a folder of logs, or a URL."""
    format_name: str | None = None
    """None: what its first line looks like."""
    settings: ReadSettings = field(default_factory=ReadSettings)

    def __str__(self) -> str:
        return self.source

    def read(self) -> Iterator[TraceRequest]:
        """As read_trace."""
        return read_trace(self.source, self.format_name, self.settings)


def read_trace(
    source: str, format_name: str | None = None, settings: ReadSettings | None = None
) -> Iterator[TraceRequest]:
    """The requests of a file, a folder of logs or a URL, in the order of their times. The format is the one that the first line
    looks like, unless it is named.

    Raises:
        UsageError: it cannot be read, is empty, or of no known format; or a line is broken, which names file, line, field,
            what was expected and what was found.
        PluginUnavailable: a URL needs a library that is not installed.
    """
    lines = read_lines(source)
    first = next(lines, None)
    if first is None:
        raise UsageError(f"{source}: expected the requests of a trace, found no line")
    chosen = named(format_name) if format_name else recognise(first)
    requests = chosen.read(itertools.chain([first], lines), settings or ReadSettings())
    head = next(requests, None)
    if head is None:
        raise UsageError(f"{source}: expected the requests of a trace, found none in format {chosen.name}")
    yield head
    yield from requests


def write_trace(path: Path, requests: Iterable[TraceRequest], format_name: str) -> int:
    """How many were written. The file is there when all of it is.

    Raises:
        UsageError: nothing is written in this format, or it cannot hold the trace's blocks, or the file cannot be written.
    """
    write = named(format_name).write
    if write is None:
        raise UsageError(f"format {format_name} can only be read; these are written: {', '.join(writable())}")
    unfinished = path.with_name(path.name + ".unfinished")
    count = 0

    def counted() -> Iterator[TraceRequest]:
        nonlocal count
        for request in requests:
            count += 1
            yield request

    try:
        with unfinished.open("w") as file:
            file.writelines(f"{line}\n" for line in write(counted()))
        unfinished.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def named(name: str) -> Format:
    """
    Raises:
        UsageError: there is no such format.
    """
    if name not in FORMATS:
        raise UsageError(f"expected a format of {', '.join(FORMATS)}, got {name}")
    return FORMATS[name]


def writable() -> list[str]:
    """Names of the formats that can be written."""
    return [name for name, found in FORMATS.items() if found.write is not None]


def recognise(first: Line) -> Format:
    """The format of a trace that begins with this line.

    Raises:
        UsageError: it looks like none.
    """
    kind, names = _field_names(first)
    candidates = [found for found in FORMATS.values() if found.kind == kind]
    # Some have all fields of another and more: the one of which most are there, and of those the one that lacks fewest.
    best = max(candidates, key=lambda found: (len(found.fields & names), -len(found.fields)))
    if len(best.fields & names) < _KNOWN_SHARE * len(best.fields):
        known = "; ".join(f"{found.name} ({', '.join(sorted(found.fields))})" for found in candidates)
        expected = f"the fields of a known format, {known} (--format names one)"
        raise broken(first, "line" if kind == "json" else "header", expected, ", ".join(sorted(names)))
    return best


def _field_names(first: Line) -> tuple[str, set[str]]:
    if not first.text.startswith(b"{"):
        return "csv", {cell.strip() for cell in split_csv(first)}
    try:
        return "json", set(msgspec.json.decode(first.text, type=dict[str, msgspec.Raw]))
    except msgspec.DecodeError as error:
        raise broken(first, "line", f"a JSON object ({error})", first.text.decode(errors="replace")) from error
