"""What a format is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.source import Line

ANSWER_TOKENS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """What a trace itself may not say."""

    block_tokens: int | None = None
    """Tokens per block, where they are not those of the format."""
    answer_tokens: int = ANSWER_TOKENS
    """Of each answer, where the format has prompts only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A way to write a trace down. `read` gets all lines, a header too; what it finds wrong it raises as UsageError."""

    name: str
    about: str
    """One line: what it is, and whose."""
    kind: Literal["json", "csv"]
    fields: frozenset[str]
    """By which a line, or the header, is recognised."""
    read: Callable[[Iterator[Line], ReadSettings], Iterator[TraceRequest]]
    write: Callable[[Iterable[TraceRequest]], Iterator[str]] | None = None
    """Lines without their ends; None: such traces are only read."""
    keeps_blocks: bool = True
    keeps_sessions: bool = True
