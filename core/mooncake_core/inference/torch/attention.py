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
from mooncake_core.inference.torch.decode_window import DecodeWindow

NAME: Final = "mooncake_paged"


class Gather:
    """The blocks of one prefill slice, or of all decode steps, as index tensors."""

    def __init__(
        self, rows: slice, blocks: torch.Tensor, starts: list[int], *, num_keys: int, in_window: bool = False
    ) -> None:
        self.rows = rows
        """Of the flat batch."""
        self.blocks = blocks
        """[sequences, blocks], padded with block 0."""
        self.flat_blocks = blocks.flatten()
        self.starts = torch.tensor(starts, device=blocks.device)
        """Position of each sequence's first new token."""
        self.num_keys = num_keys
        """What a query looks at, as far as its mask allows."""
        self.in_window = in_window
        """The KV lies in rows of the decode window."""
        self.window_rows = torch.arange(len(starts), device=blocks.device)
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
        window: DecodeWindow | None = None,
    ) -> None:
        self.kv = kv
        self.window = window
        self.num_layers = kv.shape[1]
        self.rows = kv.view(kv.shape[0] * kv.shape[1] * 2, -1)
        """K, or V, of one layer of one block in each row: whole rows are gathered many times faster than indexed parts."""
        self.windows = windows
        self.watcher = watcher
        self.block_tokens = kv.shape[3]
        self.device = kv.device
        ordered, in_window = self._ordered(slices)
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
        self.gathers = self._gathers(parts, in_window=in_window)
        ends = torch.tensor([len(part.token_ids) for part in parts]).cumsum(0) - 1
        self.last_rows = ends.to(self.device)
        """Row of each slice's last token, in the order of `order`."""

    def _ordered(self, slices: Sequence[Slice]) -> tuple[list[int], bool]:
        """Prefill slices first, then decode steps, and whether the KV of these lies in the window."""
        prefilling = [index for index, part in enumerate(slices) if len(part.token_ids) > 1]
        decoding = [index for index, part in enumerate(slices) if len(part.token_ids) == 1]
        # With a watcher, KV may still be on its way when the step is planned: a row cannot be filled.
        if self.window is None or self.watcher is not None or not decoding:
            return prefilling + decoding, False
        for index in prefilling:
            self.window.drop(slices[index].sequence_id)
        arranged = self.window.arrange(slices, decoding)
        return prefilling + (arranged or decoding), arranged is not None

    def _gathers(self, parts: Sequence[Slice], *, in_window: bool) -> list[Gather]:
        gathers, row = [], 0
        for part in parts:
            if len(part.token_ids) > 1:
                gathers.append(self._gather([part], row, row + len(part.token_ids)))
                row += len(part.token_ids)
        decoding = [part for part in parts if len(part.token_ids) == 1]
        if decoding:
            gathers.append(self._gather(decoding, row, row + len(decoding), in_window=in_window))
        return gathers

    def _gather(self, parts: Sequence[Slice], first: int, last: int, *, in_window: bool = False) -> Gather:
        width = max(len(part.block_ids) for part in parts)
        blocks = [[*part.block_ids, *[0] * (width - len(part.block_ids))] for part in parts]
        return Gather(
            slice(first, last),
            torch.tensor(blocks, device=self.device),
            [part.start for part in parts],
            num_keys=max(part.start for part in parts) + 1 if in_window else width * self.block_tokens,
            in_window=in_window,
        )

    def gathered(self, gather: Gather, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer, each [sequences, kv_heads, keys, dim]."""
        if gather.in_window:
            assert self.window is not None  # only then is anything in it
            return self.window.layer(layer, len(gather.starts), gather.num_keys)
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
        keys = torch.arange(gather.num_keys, device=self.device)
        queries = (gather.rows.stop - gather.rows.start) // len(gather.starts)
        positions = gather.starts[:, None] + torch.arange(queries, device=self.device)
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
        if gather.in_window:
            assert plan.window is not None  # only then is anything in it
            new_key, new_value = (kind[0, :, gather.rows].transpose(0, 1) for kind in (key, value))
            plan.window.write(layer, gather.window_rows, gather.starts, new_key, new_value)
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
