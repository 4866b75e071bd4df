"""Qwen-Bailian's JSON lines: seconds, lengths, turns of chats, and ids of blocks of 16 tokens (README of
github.com/alibaba-edu/qwen-bailian-usagetraces-anon; arXiv 2506.02634).

The ids are hashes of blocks, so prefixes are named here by all ids up to a block. The session of a turn is the chat that the
conversation began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from mooncake_core.workload.blocks import PrefixNames, ids_in_blocks
from mooncake_core.workload.fields import Order, decode_json
from mooncake_core.workload.formats.contract import Format, ReadSettings
from mooncake_core.workload.formats.mooncake import check_blocks
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.source import Line

BLOCK_TOKENS: Final = 16
ROOT: Final = -1
"""Parent of a conversation's first turn."""


class _Record(Struct, frozen=True):
    chat_id: int
    timestamp: Annotated[float, Meta(ge=0)]
    input_length: Annotated[int, Meta(ge=1)]
    output_length: Annotated[int, Meta(ge=0)]
    hash_ids: tuple[int, ...]
    parent_chat_id: int = ROOT
    type: str = "text"
    turn: int = 1


def read(lines: Iterator[Line], settings: ReadSettings) -> Iterator[TraceRequest]:
    """In the order of their times."""
    decoder = msgspec.json.Decoder(_Record)
    names, order = PrefixNames(), Order("timestamp")
    sessions: dict[int, int] = {}
    block_tokens = settings.block_tokens or BLOCK_TOKENS
    for line in lines:
        record = decode_json(line, decoder)
        order.check(line, record.timestamp)
        check_blocks(line, record.hash_ids, record.input_length, block_tokens)
        session = sessions[record.chat_id] = sessions.get(record.parent_chat_id, record.chat_id)
        yield TraceRequest(
            arrival_s=record.timestamp,
            input_tokens=record.input_length,
            output_tokens=record.output_length,
            block_ids=names.name(record.hash_ids),
            block_tokens=block_tokens,
            session=str(session),
        )


def write(requests: Iterable[TraceRequest]) -> Iterator[str]:
    """A line per request; chats are numbered anew."""
    latest: dict[str, tuple[int, int]] = {}
    for number, request in enumerate(requests):
        parent, turn = latest.get(request.session, (ROOT, 0)) if request.session is not None else (ROOT, 0)
        if request.session is not None:
            latest[request.session] = (number, turn + 1)
        record = _Record(
            chat_id=number,
            timestamp=round(request.arrival_s, 6),
            input_length=request.input_tokens,
            output_length=request.output_tokens,
            hash_ids=ids_in_blocks(request, BLOCK_TOKENS),
            parent_chat_id=parent,
            turn=turn + 1,
        )
        yield msgspec.json.encode(record).decode()


FORMAT: Final = Format(
    name="qwen-bailian",
    about="Qwen-Bailian's JSON lines, blocks of 16 tokens (alibaba-edu/qwen-bailian-usagetraces-anon)",
    kind="json",
    fields=frozenset(_Record.__struct_fields__),
    read=read,
    write=write,
)
