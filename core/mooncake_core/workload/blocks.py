"""Blocks of prompts: names for whole prefixes, and the same prompt in blocks of another size."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from mooncake_core.errors import UsageError
from mooncake_core.workload.request import TraceRequest


class PrefixNames:
    """Numbers for whole prefixes: equal ones for equal blocks after equal prefixes. So names of blocks alone (hashes of their
    own content, say) become names of prefixes; names of prefixes only become smaller numbers."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, Hashable], int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def name(self, blocks: Iterable[Hashable]) -> tuple[int, ...]:
        """Of a prompt, block by block."""
        names, parent = self._names, -1
        found = []
        for block in blocks:
            parent = names.setdefault((parent, block), len(names))
            found.append(parent)
        return tuple(found)


def ids_in_blocks(request: TraceRequest, block_tokens: int) -> tuple[int, ...]:
    """Names of the prompt's blocks if they had another size; a partly filled last one has a name where the trace gave it one.
    What two prompts share beyond the last block that they share in the trace is not seen.

    Raises:
        UsageError: neither size is a multiple of the other.
    """
    ids, traced = request.block_ids, request.block_tokens
    if traced == block_tokens or not ids:
        return ids
    covered = request.tokens_of(len(ids))
    if traced % block_tokens == 0:
        parts = traced // block_tokens
        return tuple(name * parts + part for name in ids for part in range(parts))[: -(-covered // block_tokens)]
    if block_tokens % traced == 0:
        whole = block_tokens // traced
        found = ids[whole - 1 :: whole]  # the last part's prefix is the whole block's
        return (*found, ids[-1]) if covered == request.input_tokens and len(ids) % whole else found
    raise UsageError(
        f"the trace has blocks of {traced} tokens: expected a part or a multiple of that as block_tokens, got {block_tokens}"
    )
