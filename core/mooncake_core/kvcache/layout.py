"""How the KV of one block lies in memory: `[layer][k|v][token][kv_head][dim]`, contiguous."""

from __future__ import annotations

from msgspec import Struct


class KVLayout(Struct, frozen=True, kw_only=True):
    """Shape of one block of KVCache; equal layouts have interchangeable bytes."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    """float32, float16 or bfloat16."""
    block_tokens: int

    @property
    def element_bytes(self) -> int:
        return {"float32": 4, "float16": 2, "bfloat16": 2}[self.dtype]

    @property
    def token_bytes(self) -> int:
        """KV of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.element_bytes

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens, the last one partly."""
        return -(-num_tokens // self.block_tokens)
