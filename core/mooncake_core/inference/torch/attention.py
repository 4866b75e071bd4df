"""Paged attention over KV blocks `[block][layer][k|v][token][kv_head][dim]`, as transformers' models call it.

Each step prepares one Plan; the attention function of every layer writes the new K and V to their slots and then attends
over the blocks: prefill slices one by one, decode steps of all sequences together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from mooncake_core.errors import ModelError
from mooncake_core.inference.contract import LayerWatcher, Slice
from mooncake_core.inference.torch.decode_window import DecodeWindow
from mooncake_core.inference.torch.flat_model import attention_mark

NAME: Final = "mooncake_paged"
UNSUPPORTED: Final = ("softcap", "s_aux")
"""Arguments of transformers' attention functions that change what is computed."""


class StepPlan(Protocol):
    """What a step's attention layers need to know."""

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        """Writes the new K and V of a layer to their slots, and attends over all there are; query [1, heads, tokens, dim],
        key and value [1, kv_heads, tokens, dim]; returns [1, tokens, heads, dim]."""


class Gather:
    """What one prefill slice, or all decode steps together, look at."""

    def __init__(
        self, rows: slice, starts: list[int], blocks: torch.Tensor | None, *, num_keys: int, device: torch.device
    ) -> None:
        self.rows = rows
        """Of the flat batch."""
        self.starts = torch.tensor(starts, device=device)
        """Position of each sequence's first new token."""
        self.count = len(starts)
        self.blocks = blocks
        """All sequences' blocks one after another, equally many each, padded with block 0; None where the KV lies in the
        decode window."""
        self.num_keys = num_keys
        """What a query looks at, as far as its mask allows."""
        self.masks: dict[int | None, torch.Tensor] = {}


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
        self.token_rows = kv.view(-1, kv.shape[4] * kv.shape[5])
        """K, or V, of one layer of one token in each row."""
        self.windows = windows
        self.watcher = watcher
        self.block_tokens = kv.shape[3]
        self.device = kv.device
        self.order, in_window = self._ordered(slices)
        parts = [slices[index] for index in self.order]
        positions = [range(part.start, part.start + len(part.token_ids)) for part in parts]
        self.input_ids = torch.tensor([[token for part in parts for token in part.token_ids]], device=self.device)
        self.position_ids = torch.tensor([[position for some in positions for position in some]], device=self.device)
        self.num_tokens = self.input_ids.shape[1]
        self.slots = self._slots(parts, positions)
        self.gathers = self._gathers(parts, in_window=in_window)
        self.window_slots: tuple[torch.Tensor, ...] | None = None
        """By layer, where the decode steps' K and V go in the window."""
        if in_window:
            assert window is not None  # only then is anything in it
            self.window_slots = window.slots(self.gathers[-1].starts)
        ends = itertools.accumulate(len(part.token_ids) for part in parts)
        self.last_rows = [end - 1 for end in ends]
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

    def _slots(self, parts: Sequence[Slice], positions: Sequence[range]) -> tuple[torch.Tensor, ...]:
        """By layer, the rows of `token_rows` for K of all tokens, then V of all tokens."""
        size = self.block_tokens
        block_rows, layer_rows = self.num_layers * 2 * size, 2 * size
        first = [
            part.block_ids[position // size] * block_rows + position % size
            for part, some in zip(parts, positions, strict=True)
            for position in some
        ]
        keys = torch.tensor(first, device=self.device)
        layers = torch.arange(self.num_layers, device=self.device) * layer_rows
        return tuple((torch.cat((keys, keys + size)) + layers[:, None]).unbind())

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
        starts = [part.start for part in parts]
        if in_window:
            return Gather(slice(first, last), starts, None, num_keys=max(starts) + 1, device=self.device)
        width = max(len(part.block_ids) for part in parts)
        blocks = [block for part in parts for block in (*part.block_ids, *[0] * (width - len(part.block_ids)))]
        return Gather(
            slice(first, last),
            starts,
            torch.tensor(blocks, device=self.device),
            num_keys=width * self.block_tokens,
            device=self.device,
        )

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
    ) -> torch.Tensor:
        """As StepPlan.attend."""
        if self.watcher:
            self.watcher.before_layer(layer)
        self.write(layer, new_rows(key, value))
        if self.watcher:
            self.watcher.layer_written(layer)
        if len(self.gathers) == 1:
            return _attend(self, self.gathers[0], layer, query[0], scaling)[None]
        return torch.cat([_attend(self, gather, layer, query[0, :, gather.rows], scaling) for gather in self.gathers])[
            None
        ]

    def write(self, layer: int, new: torch.Tensor) -> None:
        """Brings a layer's new K, then V, of all tokens to their places; new [2 * tokens, kv_heads, dim]."""
        self.token_rows.index_copy_(0, self.slots[layer], new.view(2 * self.num_tokens, -1))
        if self.window_slots is not None:
            assert self.window is not None  # only then is anything in it
            rows = self.gathers[-1].rows
            decoded = new if rows.start == 0 else new.view(2, self.num_tokens, *new.shape[1:])[:, rows]
            self.window.write(self.window_slots[layer], decoded)

    def gathered(self, gather: Gather, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer, each [sequences, kv_heads, keys, dim]."""
        if gather.blocks is None:
            assert self.window is not None  # only then is anything in it
            return self.window.layer(layer, gather.count, gather.num_keys)
        heads, dim = self.kv.shape[4:]
        first = (gather.blocks * self.num_layers + layer) * 2
        keys, values = (
            self.rows.index_select(0, rows).view(gather.count, -1, heads, dim).transpose(1, 2)
            for rows in (first, first + 1)
        )
        return keys, values

    def mask(self, gather: Gather, window: int | None) -> torch.Tensor:
        """[sequences, 1, queries, keys], True where a query may look; the same for all layers of one window."""
        if window not in gather.masks:
            gather.masks[window] = self._mask(gather, window)
        return gather.masks[window]

    def _mask(self, gather: Gather, window: int | None) -> torch.Tensor:
        keys = torch.arange(gather.num_keys, device=self.device)
        queries = (gather.rows.stop - gather.rows.start) // gather.count
        positions = gather.starts[:, None] + torch.arange(queries, device=self.device)
        mask = keys <= positions[..., None]
        if window is not None:
            mask &= keys > positions[..., None] - window
        return mask[:, None]


def new_rows(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[2 * tokens, kv_heads, dim]: K of all tokens, then V; key and value [1, kv_heads, tokens, dim]."""
    return torch.cat((key[0].transpose(0, 1), value[0].transpose(0, 1)))


_current: list[StepPlan] = []
"""The plan of the step under way. A model's attention function is global in transformers, and an engine is called from one
thread at a time; several engines in one process take turns."""


def begin(plan: StepPlan) -> None:
    """The following forward pass is this plan's."""
    _current[:] = [plan]


def end() -> None:
    """The forward pass is over."""
    _current.clear()


def attention_interface(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **extras: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: query [1, heads, tokens, dim], key and value [1, kv_heads, tokens, dim]; returns
    [1, tokens, heads, dim]. Outside of a step the model is being written down.

    Raises:
        ModelError: the model wants something of attention that is not computed here.
    """
    for name in UNSUPPORTED:
        if extras.get(name) is not None:
            raise ModelError(f"the model's attention uses {name}, which the torch engine does not compute")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = paged_attention if _current else attention_mark
    return attend(query, key, value, module.layer_idx, scaling), None


def paged_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
) -> torch.Tensor:
    """Attention of the step under way; shapes as in StepPlan.attend."""
    return _current[0].attend(query, key, value, layer, scaling)


def _attend(plan: Plan, gather: Gather, layer: int, query: torch.Tensor, scaling: float) -> torch.Tensor:
    """[rows, heads, dim] of one gather; query [heads, rows, dim]."""
    keys, values = plan.gathered(gather, layer)
    mask = plan.mask(gather, plan.windows[layer])
    heads, rows, _ = query.shape
    if rows > gather.count:  # one sequence's chunk
        grouped = heads != keys.shape[1]
        result = scaled_dot_product_attention(
            query[None], keys, values, attn_mask=mask, scale=scaling, enable_gqa=grouped
        )
        return result[0].transpose(0, 1)
    return attend_decoding(query.transpose(0, 1), keys, values, mask, scaling)


def attend_decoding(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """[sequences, heads, dim] of one query per sequence; keys and values [sequences, kv_heads, keys, dim]."""
    sequences, heads, dim = query.shape
    # Queries that share a KV head go together, as if they were queries of one sequence.
    queries = query.reshape(sequences, keys.shape[1], -1, dim)
    result = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
    return result.reshape(sequences, heads, dim)
