"""Paged attention over KV blocks `[block][layer][k|v][token][kv_head][dim]`, as transformers' models call it.

Each step prepares one Plan; the attention function of every layer writes the new K and V to their slots and then attends
over the blocks: prefill slices one by one, decode steps of all sequences together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention

from mooncake_core.inference.contract import LayerWatcher, Slice

NAME: Final = "mooncake_paged"


class Gather:
    """The blocks of one prefill slice, or of all decode steps, as index tensors."""

    def __init__(self, rows: slice, blocks: torch.Tensor, lengths: list[int], starts: list[int]) -> None:
        self.rows = rows
        """Of the flat batch."""
        self.blocks = blocks
        """[sequences, blocks], padded with block 0."""
        self.flat_blocks = blocks.flatten()
        self.lengths = lengths
        """KV tokens of each sequence, the new ones included."""
        self.starts = starts
        """Position of each sequence's first new token."""
        self.masks: dict[int | None, torch.Tensor | None] = {}


class Plan:
    """Where the tokens of one step go, and what they attend to."""

    def __init__(
        self,
        kv: torch.Tensor,
        slices: Sequence[Slice],
        *,
        windows: Sequence[int | None],
        watcher: LayerWatcher | None,
    ) -> None:
        self.kv = kv
        self.num_layers = kv.shape[1]
        self.rows = kv.view(kv.shape[0] * kv.shape[1] * 2, -1)
        """K, or V, of one layer of one block in each row: whole rows are gathered many times faster than indexed parts."""
        self.windows = windows
        self.watcher = watcher
        self.block_tokens = kv.shape[3]
        self.device = kv.device
        ordered = sorted(range(len(slices)), key=lambda index: len(slices[index].token_ids) == 1)
        self.order = ordered
        parts = [slices[index] for index in ordered]
        token_ids = [token for part in parts for token in part.token_ids]
        positions = [part.start + index for part in parts for index in range(len(part.token_ids))]
        self.input_ids = torch.tensor([token_ids], device=self.device)
        self.position_ids = torch.tensor([positions], device=self.device)
        slots = [
            part.block_ids[position // self.block_tokens] * self.block_tokens + position % self.block_tokens
            for part in parts
            for position in range(part.start, part.start + len(part.token_ids))
        ]
        slot_tensor = torch.tensor(slots, device=self.device)
        self.slot_blocks = slot_tensor // self.block_tokens
        self.slot_offsets = slot_tensor % self.block_tokens
        self.gathers = self._gathers(parts)
        ends = torch.tensor([len(part.token_ids) for part in parts]).cumsum(0) - 1
        self.last_rows = ends.to(self.device)
        """Row of each slice's last token, in the order of `order`."""

    def _gathers(self, parts: Sequence[Slice]) -> list[Gather]:
        gathers, row = [], 0
        for part in parts:
            if len(part.token_ids) > 1:
                gathers.append(self._gather([part], row, row + len(part.token_ids)))
                row += len(part.token_ids)
        decoding = [part for part in parts if len(part.token_ids) == 1]
        if decoding:
            gathers.append(self._gather(decoding, row, row + len(decoding)))
        return gathers

    def _gather(self, parts: Sequence[Slice], first: int, last: int) -> Gather:
        width = max(len(part.block_ids) for part in parts)
        blocks = [[*part.block_ids, *[0] * (width - len(part.block_ids))] for part in parts]
        return Gather(
            slice(first, last),
            torch.tensor(blocks, device=self.device),
            [part.start + len(part.token_ids) for part in parts],
            [part.start for part in parts],
        )

    def gathered(self, gather: Gather, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer, each [sequences, kv_heads, keys, dim]."""
        count = len(gather.starts)
        heads, dim = self.kv.shape[4:]
        first = (gather.flat_blocks * self.num_layers + layer) * 2
        keys, values = (
            self.rows.index_select(0, rows).view(count, -1, heads, dim).transpose(1, 2) for rows in (first, first + 1)
        )
        return keys, values

    def mask(self, gather: Gather, window: int | None) -> torch.Tensor | None:
        """[sequences, 1, queries, keys], True where a query may look; the same for all layers of one window."""
        if window not in gather.masks:
            gather.masks[window] = self._mask(gather, window)
        return gather.masks[window]

    def _mask(self, gather: Gather, window: int | None) -> torch.Tensor | None:
        keys = torch.arange(gather.blocks.shape[1] * self.block_tokens, device=self.device)
        starts = torch.tensor(gather.starts, device=self.device)
        queries = (gather.rows.stop - gather.rows.start) // len(gather.starts)
        positions = starts[:, None] + torch.arange(queries, device=self.device)
        mask = keys <= positions[..., None]
        if window is not None:
            mask &= keys > positions[..., None] - window
        return mask[:, None]


_current: list[Plan] = []
"""The plan of the step under way. A model's attention function is global in transformers, and an engine is called from one
thread at a time; several engines in one process take turns."""


def begin(plan: Plan) -> None:
    """The following forward pass is this plan's."""
    _current[:] = [plan]


def end() -> None:
    """The forward pass is over."""
    _current.clear()


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. query [1, heads, tokens, dim], key and value [1, kv_heads, tokens, dim]; returns
    [1, tokens, heads, dim]."""
    plan = _current[0]
    layer = module.layer_idx
    if plan.watcher:
        plan.watcher.before_layer(layer)
    cache = plan.kv[:, layer]
    cache[plan.slot_blocks, 0, plan.slot_offsets] = key[0].transpose(0, 1)
    cache[plan.slot_blocks, 1, plan.slot_offsets] = value[0].transpose(0, 1)
    if plan.watcher:
        plan.watcher.layer_written(layer)
    output = torch.empty_like(query[0].transpose(0, 1))
    for gather in plan.gathers:
        output[gather.rows] = _attend(plan, gather, layer, query, scaling)
    return output[None], None


def _attend(plan: Plan, gather: Gather, layer: int, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """[rows, heads, dim] of one gather."""
    count = len(gather.starts)
    heads, dim = query.shape[1], query.shape[3]
    keys, values = plan.gathered(gather, layer)
    queries = query[0, :, gather.rows].transpose(0, 1).reshape(count, -1, heads, dim).transpose(1, 2)
    mask = plan.mask(gather, plan.windows[layer])
    result = scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scaling, enable_gqa=heads != keys.shape[1]
    )
    return result.transpose(1, 2).reshape(-1, heads, dim)
