"""Jobs out of a published trace: Mooncake's JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from mooncake_core.errors import UsageError
from mooncake_core.kvcache.keys import KEY_BYTES, reusable_blocks
from mooncake_core.sim.job import Job
from mooncake_core.workload.request import TraceRequest

TRACE_BLOCK_TOKENS = 512


class TraceLine(Struct, frozen=True):
    """A line of a trace."""

    timestamp: Annotated[float, Meta(ge=0)]
    """Milliseconds since the trace began."""
    input_length: Annotated[int, Meta(ge=1)]
    output_length: Annotated[int, Meta(ge=0)]
    hash_ids: tuple[int, ...]
    """Of its blocks of 512 tokens, the last one partly filled: equal numbers are equal prefixes."""


def read_trace(path: Path) -> Iterator[TraceRequest]:
    """The requests of a trace, in order.

    Raises:
        UsageError: the file cannot be read, or a line of it is no request; names line and field.
    """
    latest = 0.0
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines):
        try:
            found = msgspec.json.decode(line, type=TraceLine)
        except msgspec.MsgspecError as error:
            raise UsageError(f"{path}:{number + 1}: expected a line of a Mooncake trace: {error}") from error
        if found.timestamp < latest:
            raise UsageError(f"{path}:{number + 1}: expected timestamp {latest:g} or later, got {found.timestamp:g}")
        latest = found.timestamp
        yield TraceRequest(
            arrival_s=found.timestamp / 1000,
            input_tokens=found.input_length,
            output_tokens=found.output_length,
            block_ids=found.hash_ids,
            block_tokens=TRACE_BLOCK_TOKENS,
        )


def make_jobs(
    requests: Iterable[TraceRequest], *, block_tokens: int, speed: float = 1.0, partial_blocks: bool = False
) -> Iterator[Job]:
    """What a cluster with blocks of so many tokens has to do, `speed` times as fast. With `partial_blocks` the last, partly
    filled block may be used again too, as published hit ratios count it; the live system keeps full blocks only.

    Raises:
        UsageError: the trace names blocks of a size of which the cluster's is neither a part nor a multiple.
    """
    keys: dict[int, bytes] = {}  # equal blocks share one object
    for number, request in enumerate(requests):
        blocks = reusable_blocks(request.input_tokens, block_tokens)
        if partial_blocks:
            blocks = -(-request.input_tokens // block_tokens)
        names = _names(request, block_tokens, blocks)
        for name in names:
            if name not in keys:
                keys[name] = name.to_bytes(KEY_BYTES, "big", signed=True)
        yield Job(
            number=number,
            arrived_at=request.arrival_s / speed,
            prompt_tokens=request.input_tokens,
            output_tokens=max(1, request.output_tokens),
            keys=[keys[name] for name in names],
            tenant=request.tenant,
            priority=-request.priority,  # here lower is earlier
        )


def _names(request: TraceRequest, block_tokens: int, count: int) -> list[int]:
    """Of the prompt's first `count` blocks in the cluster's size."""
    ids, traced = request.block_ids, request.block_tokens
    if traced == block_tokens or not ids:
        return list(ids[:count])
    if traced % block_tokens == 0:
        parts = traced // block_tokens
        return [name * parts + part for name in ids for part in range(parts)][:count]
    if block_tokens % traced == 0:
        whole = block_tokens // traced
        return list(ids[whole - 1 :: whole])[:count]  # the last part's prefix is the whole block's
    raise UsageError(
        f"the trace names blocks of {traced} tokens: expected block_tokens to be a part or a multiple of that, got {block_tokens}"
    )
