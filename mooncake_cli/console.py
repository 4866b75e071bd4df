"""The only place that prints. stdout is data, stderr is everything else."""

from __future__ import annotations

import json as _json
import os
import select
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

SCHEMA_VERSION: Final = 1


def data(text: str, *, end: str = "\n") -> None:
    """What the user asked for."""
    print(text, end=end, flush=True)


def json(value: dict[str, Any]) -> None:
    """What the user asked for, for programs."""
    data(_rendered(value))


def json_file(path: Path, value: object) -> None:
    """The same, into a file whose folder is made."""
    from mooncake_core import whole_file

    path.parent.mkdir(parents=True, exist_ok=True)
    whole_file.write(path, f"{_rendered(_plain(value))}\n".encode())


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
    """Progress and remarks; where nobody reads them the command goes on, and ends with the code it would end with."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        nobody_reads()


def error(text: str, hint: str = "") -> None:
    """What went wrong, and what to do about it."""
    for line in text.splitlines() or [""]:
        note(f"error: {line}")
    if hint:
        note(f"hint: {hint}")


def takes_colour(stream: TextIO) -> bool:
    """A terminal that knows colours, whose user wants them."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") and not os.environ.get("NO_COLOR")


def nobody_reads() -> bool:
    """Whether a reader has gone (`mooncake plugins | head -1`); what is printed from then on is lost without complaint."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream.fileno())]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the interpreter flushes at its end
    return bool(gone)


def _is_broken(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _rendered(value: Any) -> str:
    return _json.dumps({"schema_version": SCHEMA_VERSION, **value}, indent=2, default=_plain)


def _plain(value: object) -> object:
    import msgspec

    return msgspec.to_builtins(value)
