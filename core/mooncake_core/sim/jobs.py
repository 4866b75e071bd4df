"""Jobs out of a published trace: Mooncake's JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from mooncake_core.errors import UsageError
from mooncake_core.kvcache.keys import KEY_BYTES, reusable_blocks
from mooncake_core.sim.job import Job

TRACE_BLOCK_TOKENS = 512


class TraceLine(Struct, frozen=True):
    """A line of a trace."""

    timestamp: Annotated[float, Meta(ge=0)]
    """Milliseconds since the trace began."""
    input_length: Annotated[int, Meta(ge=1)]
    output_length: Annotated[int, Meta(ge=0)]
    hash_ids: list[int]
    """Of its blocks of 512 tokens, the last one partly filled: equal numbers are equal prefixes."""


def read_jobs(path: Path, *, speed: float = 1.0, partial_blocks: bool = False) -> Iterator[Job]:
    """The requests of a trace, which comes `speed` times as fast. With `partial_blocks` the last, partly filled block may be
    used again too, as published hit ratios count it; the live system keeps full blocks only.

    Raises:
        UsageError: the file cannot be read, or a line of it is no request; names line and field.
    """
    keys: dict[int, bytes] = {}
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
        blocks = len(found.hash_ids) if partial_blocks else reusable_blocks(found.input_length, TRACE_BLOCK_TOKENS)
        for name in found.hash_ids[:blocks]:
            if name not in keys:
                keys[name] = name.to_bytes(KEY_BYTES, "big", signed=True)
        yield Job(
            number=number,
            arrived_at=found.timestamp / 1000 / speed,
            prompt_tokens=found.input_length,
            output_tokens=max(1, found.output_length),
            keys=[keys[name] for name in found.hash_ids[:blocks]],
        )
