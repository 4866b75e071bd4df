"""One request of a trace, whatever format it came from."""

from __future__ import annotations

from msgspec import Struct


class TraceRequest(Struct, frozen=True, kw_only=True, gc=False):
    """When a request arrives, how long it is, and what it shares with others."""

    arrival_s: float
    """Seconds after the trace's own beginning."""
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()
    """Of the prompt's blocks, in order: equal ids mean equal prefixes up to and with that block. Formats that name a partial
    last block (Mooncake, Qwen-Bailian) have it here; empty where a format knows no prefixes."""
    block_tokens: int = 512
    """Tokens per block."""
    session: str | None = None
    """The conversation it belongs to."""
    tenant: str = "default"
    priority: int = 0
    """The larger, the more urgent."""

    def tokens_of(self, num_blocks: int) -> int:
        """Tokens in the first so many blocks; the last block may be partial."""
        return min(num_blocks * self.block_tokens, self.input_tokens)
