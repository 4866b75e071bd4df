"""Azure's LLM inference traces of 2023 and 2024: CSV of dates and lengths (AzureLLMInferenceDataset2023.md and ...2024.md in
github.com/Azure/AzurePublicDataset)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final

from mooncake_core.workload.fields import Order, Table, broken
from mooncake_core.workload.formats.contract import Format, ReadSettings
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.source import Line

_FIELDS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_WRITTEN_FROM: Final = datetime(2000, 1, 1)
"""The date of a trace that has none."""


def read(lines: Iterator[Line], settings: ReadSettings) -> Iterator[TraceRequest]:
    """In the order of their times; the first one comes at 0."""
    header = next(lines, None)
    if header is None:
        return
    table, order = Table(header, _FIELDS), Order("TIMESTAMP")
    began: datetime | None = None
    for line in lines:
        cells = table.cells(line)
        text = table.text(cells, "TIMESTAMP")
        at = _date(line, text)
        began = at if began is None else began
        if (at.tzinfo is None) != (began.tzinfo is None):
            raise broken(line, "TIMESTAMP", "a time zone in all lines, or in none", text)
        at_s = (at - began).total_seconds()
        order.check(line, at_s, text)
        yield TraceRequest(
            arrival_s=at_s,
            input_tokens=table.count(line, cells, "ContextTokens", least=1),
            output_tokens=table.count(line, cells, "GeneratedTokens"),
        )


def write(requests: Iterable[TraceRequest]) -> Iterator[str]:
    """A line per request."""
    yield ",".join(_FIELDS)
    for request in requests:
        at = _WRITTEN_FROM + timedelta(seconds=request.arrival_s)
        yield f"{at.isoformat(' ', 'microseconds')},{request.input_tokens},{request.output_tokens}"


def _date(line: Line, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)  # some have seven digits of a second: what is below microseconds is cut off
    except ValueError as error:
        raise broken(line, "TIMESTAMP", "a date such as 2023-11-16 18:17:03.97", text) from error


FORMAT: Final = Format(
    name="azure",
    about="Azure's LLM inference CSV, no prefixes (Azure/AzurePublicDataset)",
    kind="csv",
    fields=frozenset(_FIELDS),
    read=read,
    write=write,
    keeps_blocks=False,
    keeps_sessions=False,
)
