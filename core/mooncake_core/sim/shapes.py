"""What the simulated instances and hosts are made of: sizes, speeds, and how long things take there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Costs(Protocol):
    """How long computations really take, in seconds."""

    def prefill_s(self, prompt_tokens: int, matched_tokens: int) -> float:
        """A prompt of which a prefix is in place."""

    def step_s(self, batch: int, context_tokens: int) -> float:
        """A decode step of so many sequences with so much context together. Linear in the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a model's KV takes."""

    name: str
    num_layers: int
    block_tokens: int
    kv_bytes_per_token: int
    activation_bytes_per_token: int = 0
    """What goes from one member of a prefill group to the next."""

    @property
    def block_bytes(self) -> int:
        return self.block_tokens * self.kv_bytes_per_token

    def blocks(self, num_tokens: int) -> int:
        """That hold so many tokens, the last one partly."""
        return -(-num_tokens // self.block_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostShape:
    """An instance and the host it is on."""

    hbm_blocks: int
    """KV memory beside the weights."""
    dram_blocks: int
    ssd_blocks: int = 0
    nic_bytes_per_s: float
    """All NICs together, in each direction."""
    device_bytes_per_s: float = math.inf
    """From the host's memory to the device's."""
    ssd_bytes_per_s: float = 6e9
