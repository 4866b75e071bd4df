"""Mooncake's JSON lines: milliseconds, lengths, and ids of prefixes block by block, the partly filled last one too (FAST'25
artifact: github.com/kvcache-ai/Mooncake, FAST25-release/traces).

Fields beyond the published four are optional: `block_size` where blocks have not 512 tokens (so in PyPI's kvcache-simulator),
`session_id` (so in NVIDIA's aiperf), `tenant`, `priority`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from mooncake_core.workload.fields import Order, broken, decode_json
from mooncake_core.workload.formats.contract import Format, ReadSettings
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.source import Line

BLOCK_TOKENS: Final = 512


class _Record(Struct, frozen=True):
    timestamp: Annotated[float, Meta(ge=0)]
    input_length: Annotated[int, Meta(ge=1)]
    output_length: Annotated[int, Meta(ge=0)]
    hash_ids: tuple[int, ...]
    block_size: Annotated[int, Meta(ge=1)] | None = None
    session_id: str | int | None = None
    tenant: str = "default"
    priority: int = 0


def read(lines: Iterator[Line], settings: ReadSettings) -> Iterator[TraceRequest]:
    """In the order of their times."""
    decoder = msgspec.json.Decoder(_Record)
    order = Order("timestamp")
    for line in lines:
        record = decode_json(line, decoder)
        order.check(line, record.timestamp)
        block_tokens = settings.block_tokens or record.block_size or BLOCK_TOKENS
        check_blocks(line, record.hash_ids, record.input_length, block_tokens)
        yield TraceRequest(
            arrival_s=record.timestamp / 1000,
            input_tokens=record.input_length,
            output_tokens=record.output_length,
            block_ids=record.hash_ids,
            block_tokens=block_tokens,
            session=None if record.session_id is None else str(record.session_id),
            tenant=record.tenant,
            priority=record.priority,
        )


def check_blocks(line: Line, ids: tuple[int, ...], input_tokens: int, block_tokens: int) -> None:
    """
    Raises:
        UsageError: there are not as many ids as the prompt has blocks; with or without the partly filled last one, or none.
    """
    most, full = -(-input_tokens // block_tokens), input_tokens // block_tokens
    if len(ids) not in (most, full, 0):
        expected = f"{most} ids, for {input_tokens} tokens in blocks of {block_tokens} (--block-tokens says otherwise)"
        raise broken(line, "hash_ids", expected, f"{len(ids)} ids")


def write(requests: Iterable[TraceRequest]) -> Iterator[str]:
    """A line per request."""
    for request in requests:
        yield msgspec.json.encode(_record(request)).decode()


def _record(request: TraceRequest) -> dict[str, Any]:
    milliseconds = round(request.arrival_s * 1000, 3)
    record: dict[str, Any] = {
        "timestamp": int(milliseconds) if milliseconds.is_integer() else milliseconds,
        "input_length": request.input_tokens,
        "output_length": request.output_tokens,
        "hash_ids": request.block_ids,
    }
    if request.block_tokens != BLOCK_TOKENS:
        record["block_size"] = request.block_tokens
    if request.session is not None:
        record["session_id"] = request.session
    if request.tenant != "default":
        record["tenant"] = request.tenant
    if request.priority:
        record["priority"] = request.priority
    return record


FORMAT: Final = Format(
    name="mooncake",
    about="Mooncake's JSON lines, blocks of 512 tokens (kvcache-ai/Mooncake, FAST25-release/traces)",
    kind="json",
    fields=frozenset({"timestamp", "input_length", "output_length", "hash_ids"}),
    read=read,
    write=write,
)
