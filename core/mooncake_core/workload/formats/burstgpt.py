"""BurstGPT's CSV: seconds from the first day's midnight, and lengths (README of github.com/HPMLL/BurstGPT; arXiv 2401.17644).
Release 2 has `Session ID` and `Elapsed time` as well. Requests that failed have 0 response tokens; they are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mooncake_core.workload.fields import Order, Table
from mooncake_core.workload.formats.contract import Format, ReadSettings
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.source import Line

_NEEDED: Final = ("Timestamp", "Request tokens", "Response tokens")


def read(lines: Iterator[Line], settings: ReadSettings) -> Iterator[TraceRequest]:
    """In the order of their times; the first one comes at 0."""
    header = next(lines, None)
    if header is None:
        return
    table, order = Table(header, _NEEDED), Order("Timestamp")
    began_s: float | None = None
    for line in lines:
        cells = table.cells(line)
        at_s = table.seconds(line, cells, "Timestamp")
        order.check(line, at_s)
        prompt = table.count(line, cells, "Request tokens")
        answer = table.count(line, cells, "Response tokens")
        if not prompt or not answer:
            continue
        began_s = at_s if began_s is None else began_s
        yield TraceRequest(
            arrival_s=at_s - began_s,
            input_tokens=prompt,
            output_tokens=answer,
            session=table.text(cells, "Session ID") or None,
        )


def write(requests: Iterable[TraceRequest]) -> Iterator[str]:
    """A line per request, as release 2 has them; what it does not know, the model and the elapsed time, is empty."""
    yield "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
    for request in requests:
        prompt, answer = request.input_tokens, max(1, request.output_tokens)
        session = request.session or ""
        kind = "Conversation log" if session else "API log"
        yield f"{round(request.arrival_s, 6)},{session},,,{prompt},{answer},{prompt + answer},{kind}"


FORMAT: Final = Format(
    name="burstgpt",
    about="BurstGPT's CSV, no prefixes (HPMLL/BurstGPT)",
    kind="csv",
    fields=frozenset({"Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"}),
    read=read,
    write=write,
    keeps_blocks=False,
)
