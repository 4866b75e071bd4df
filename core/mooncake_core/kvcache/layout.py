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

    @property
    def layer_bytes(self) -> int:
        """K and V of one layer of one block."""
        return self.block_bytes // self.num_layers

    def layer_offset(self, layer: int) -> int:
        """Where a layer's K begins within the block; its V follows after layer_bytes / 2."""
        return layer * self.layer_bytes

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold so many tokens, the last one partly."""
        return -(-num_tokens // self.block_tokens)
