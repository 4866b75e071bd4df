"""Fields of a line, and the error that names line, field, what was expected and what was found."""

from __future__ import annotations

import csv
import re
from typing import Any, Final, TypeVar

import msgspec

from mooncake_core.errors import UsageError
from mooncake_core.workload.source import Line

T = TypeVar("T")
_AT: Final = re.compile(r"(?P<expected>.*?)(?:, got `(?P<got>\w+)`)? - at `\$\.?(?P<field>[^`]*)`$")
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_SHOWN: Final = 60
"""Characters of what was found."""


def broken(line: Line, field: str, expected: str, found: object) -> UsageError:
    """To be raised."""
    return UsageError(f"{line.file}:{line.number}: {field}: expected {expected}, found {_short(found)}")


def decode_json(line: Line, decoder: msgspec.json.Decoder[T]) -> T:
    """A line of JSON lines.

    Raises:
        UsageError: as `broken`.
    """
    try:
        return decoder.decode(line.text)
    except msgspec.ValidationError as error:
        raise _invalid(line, str(error)) from error
    except msgspec.DecodeError as error:
        raise broken(line, "line", f"a JSON object ({error})", line.text.decode(errors="replace")) from error


def split_csv(line: Line) -> list[str]:
    """The cells of a line.

    Raises:
        UsageError: as `broken`.
    """
    try:
        return next(csv.reader([line.text.decode("utf-8-sig")]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise broken(line, "line", f"comma-separated text ({error})", line.text.decode(errors="replace")) from error


class Table:
    """Lines with one value per column, which the first line names."""

    def __init__(self, header: Line, needed: tuple[str, ...]) -> None:
        """
        Raises:
            UsageError: a column that is needed is not there.
        """
        names = [name.strip() for name in split_csv(header)]
        missing = [name for name in needed if name not in names]
        if missing:
            raise broken(header, "header", f"a column {missing[0]!r}", ", ".join(names))
        self._columns = {name: index for index, name in enumerate(names)}

    def cells(self, line: Line) -> list[str]:
        """Of a line.

        Raises:
            UsageError: it has too few or too many.
        """
        cells = split_csv(line)
        if len(cells) != len(self._columns):
            raise broken(line, "line", f"{len(self._columns)} cells", f"{len(cells)}")
        return cells

    def text(self, cells: list[str], name: str) -> str:
        """A cell; empty where there is no such column."""
        index = self._columns.get(name)
        return "" if index is None else cells[index].strip()

    def count(self, line: Line, cells: list[str], name: str, *, least: int = 0) -> int:
        """A cell that is a whole number; "472.0" is one.

        Raises:
            UsageError: it is not.
        """
        text = self.text(cells, name)
        try:
            value = int(text) if text.isdecimal() else float(text)
        except ValueError:
            value = -1
        if value != int(value) or value < least:
            raise broken(line, name, f"a whole number of {least} or more", text)
        return int(value)

    def seconds(self, line: Line, cells: list[str], name: str) -> float:
        """A cell that is a time.

        Raises:
            UsageError: it is not.
        """
        text = self.text(cells, name)
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise broken(line, name, "seconds of 0 or more", text)
        return value


class Order:
    """Whether lines come in the order of their times."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._latest: float | None = None
        self._shown: object = None

    def check(self, line: Line, time: float, shown: object = None) -> None:
        """
        Raises:
            UsageError: this one is earlier than the one before.
        """
        shown = time if shown is None else shown
        if self._latest is not None and time < self._latest:
            raise broken(line, self._field, f"{_short(self._shown)} or later, as lines come by time", shown)
        self._latest, self._shown = time, shown


def _invalid(line: Line, message: str) -> UsageError:
    """What msgspec says of a value, with the value."""
    record: Any = msgspec.json.decode(line.text)
    if missing := _MISSING.search(message):
        return broken(line, missing["field"], "a value", "no such field")
    at = _AT.match(message)
    if at is None or not isinstance(record, dict):
        return broken(line, "line", "a JSON object", line.text.decode(errors="replace"))
    found: Any = record
    for part in re.findall(r"\w+", at["field"]):
        found = found[int(part)] if isinstance(found, list) else found[part]
    expected = at["expected"].removeprefix("Expected ").replace("`", "")
    return broken(line, at["field"], expected, msgspec.json.encode(found).decode())


def _short(found: object) -> str:
    text = f"{found:g}" if isinstance(found, float) else str(found)
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return text or "nothing"
