"""LMCache's lookup log: JSON lines of Unix times, lengths and hashes of a prompt's full chunks (lmcache/tools/cache_simulator/
README.md in github.com/LMCache/LMCache). `lmcache server --lookup-hash-log-dir DIR` writes it.

It has no answers: they are as long as `answer_tokens` says. Servers write lines as lookups end, so they are sorted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from mooncake_core.workload.blocks import PrefixNames
from mooncake_core.workload.fields import broken, decode_json
from mooncake_core.workload.formats.contract import Format, ReadSettings
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.source import Line


class _Record(Struct, frozen=True):
    timestamp: Annotated[float, Meta(ge=0)]
    chunk_size: Annotated[int, Meta(ge=1)]
    seq_len: Annotated[int, Meta(ge=1)]
    chunk_hashes: tuple[str | int, ...]
    model_name: str = ""
    request_id: str = ""


def read(lines: Iterator[Line], settings: ReadSettings) -> Iterator[TraceRequest]:
    """In the order of their times; the first one comes at 0."""
    decoder = msgspec.json.Decoder(_Record)
    records: list[_Record] = []
    for line in lines:
        record = decode_json(line, decoder)
        _check(line, record, records[0].chunk_size if records else record.chunk_size)
        records.append(record)
    records.sort(key=lambda record: record.timestamp)
    names = PrefixNames()
    for record in records:
        # Models share no cache: the model's name stands before the first chunk.
        chunks = names.name((record.model_name, *record.chunk_hashes))[1:]
        yield TraceRequest(
            arrival_s=record.timestamp - records[0].timestamp,
            input_tokens=record.seq_len,
            output_tokens=settings.answer_tokens,
            block_ids=chunks,
            block_tokens=record.chunk_size,
        )


def _check(line: Line, record: _Record, chunk_size: int) -> None:
    if record.chunk_size != chunk_size:
        raise broken(line, "chunk_size", f"{chunk_size} as in the first line", record.chunk_size)
    full = record.seq_len // chunk_size
    if len(record.chunk_hashes) > full:
        expected = f"{full} hashes at most, of the full chunks of {record.seq_len} tokens"
        raise broken(line, "chunk_hashes", expected, f"{len(record.chunk_hashes)} hashes")


FORMAT: Final = Format(
    name="lmcache",
    about="LMCache's lookup log, a file or its folder, no answers (LMCache/LMCache, cache_simulator)",
    kind="json",
    fields=frozenset({"timestamp", "chunk_size", "seq_len", "chunk_hashes", "model_name", "request_id"}),
    read=read,
    keeps_sessions=False,
)
