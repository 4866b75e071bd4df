"""The only place that prints. stdout is data, stderr is everything else."""

from __future__ import annotations

import json as _json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

SCHEMA_VERSION: Final = 1


def data(text: str, *, end: str = "\n") -> None:
    """What the user asked for."""
    print(text, end=end, flush=True)


def json(value: dict[str, Any]) -> None:
    """What the user asked for, for programs."""
    data(_rendered(value))


def json_file(path: Path, value: object) -> None:
    """The same, into a file whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_rendered(_plain(value)) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned and coloured on a terminal, separated by tabs elsewhere."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in (list(columns), *cells):
            data("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in cells:
        drawn.add_row(*row)
    Console().print(drawn)


def note(text: str) -> None:
    """Progress and remarks."""
    print(text, file=sys.stderr, flush=True)


def error(text: str, hint: str = "") -> None:
    """What went wrong, and what to do about it."""
    for line in text.splitlines() or [""]:
        note(f"error: {line}")
    if hint:
        note(f"hint: {hint}")


def _rendered(value: Any) -> str:
    return _json.dumps({"schema_version": SCHEMA_VERSION, **value}, indent=2, default=_plain)


def _plain(value: object) -> object:
    import msgspec

    return msgspec.to_builtins(value)
