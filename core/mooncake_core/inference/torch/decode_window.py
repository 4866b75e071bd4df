"""The running decode batch's KV once more, in one row per sequence, so that a step reads it in place.

Blocks lie scattered; gathering them for every layer of every step took most of a CPU's decode step. A row is gathered when
its sequence joins, then grows by one position per step, like the blocks themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from mooncake_core.inference.contract import Slice

GROWTH: Final = 1.5
SHORTEST_TOKENS: Final = 256


@dataclass(slots=True)
class _Row:
    """Who owns a row, and how much of it is right."""

    sequence_id: int
    block_ids: list[int]
    length: int

    def continues(self, part: Slice) -> bool:
        """Whether the row holds all that comes before this slice."""
        known = len(self.block_ids)
        return self.length == part.start and list(part.block_ids[:known]) == self.block_ids


class DecodeWindow:
    """Rows 0 to n - 1 are those of the step's n decode slices, in the order that `arrange` returned."""

    def __init__(self, kv: torch.Tensor, limit_bytes: int) -> None:
        self._kv = kv
        _, self._num_layers, _, self._block_tokens, self._heads, self._dim = kv.shape
        token_bytes = 2 * self._num_layers * self._heads * self._dim * kv.element_size()
        self._limit_tokens = limit_bytes // token_bytes
        self._rows: list[_Row | None] = []
        self._hold(self._empty(0, 0))

    def arrange(self, slices: Sequence[Slice], decoding: Sequence[int]) -> list[int] | None:
        """Gives each decode slice a row, and brings rows in order; returns the slices' indexes by row. None when the rows
        would take too much memory: then the blocks are gathered."""
        count = len(decoding)
        longest = max(slices[index].start for index in decoding) + 1
        wanted = {slices[index].sequence_id: index for index in decoding}
        if len(wanted) < count or not self._make_room(count, longest):
            return None
        for number, row in enumerate(self._rows):
            if row is not None and (
                row.sequence_id not in wanted or not row.continues(slices[wanted[row.sequence_id]])
            ):
                self._rows[number] = None
        placed = {row.sequence_id for row in self._rows if row is not None}
        newcomers = [index for index in decoding if slices[index].sequence_id not in placed]
        for hole in (number for number in range(count) if self._rows[number] is None):
            moved = next((number for number in range(count, len(self._rows)) if self._rows[number]), None)
            if moved is not None:
                self._move(moved, hole)
            else:
                self._fill(hole, slices[newcomers.pop()])
        order = []
        for row in self._rows[:count]:
            assert row is not None  # every hole was filled
            part = slices[wanted[row.sequence_id]]
            row.length += 1
            row.block_ids = list(part.block_ids)
            order.append(wanted[row.sequence_id])
        return order

    def drop(self, sequence_id: int) -> None:
        """The sequence is computed without its row: what the row holds is not all any more."""
        for number, row in enumerate(self._rows):
            if row is not None and row.sequence_id == sequence_id:
                self._rows[number] = None

    def layer(self, layer: int, count: int, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of the first rows, each [count, kv_heads, num_tokens, dim]; views."""
        rows = self._store[layer, :, :count, :, :num_tokens]
        return rows[0], rows[1]

    def slots(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """By layer, the places of a new position of each of the first rows, for `write`."""
        layers, kinds, rows, heads, tokens, _ = self._store.shape
        places = torch.arange(len(positions) * heads) * tokens + positions.repeat_interleave(heads)
        both = torch.cat((places, places + rows * heads * tokens))
        return tuple((both + torch.arange(layers)[:, None] * (kinds * rows * heads * tokens)).unbind())

    def write(self, slots: torch.Tensor, new: torch.Tensor) -> None:
        """K of all rows, then V of all rows, each row [kv_heads, dim], to the slots of a layer."""
        self._flat.index_copy_(0, slots, new.reshape(-1, self._dim))

    def _make_room(self, count: int, longest: int) -> bool:
        rows, tokens = self._store.shape[2], self._store.shape[4]
        if count <= rows and longest <= tokens:
            return True
        new_rows = max(rows, count)
        new_tokens = tokens if longest <= tokens else max(SHORTEST_TOKENS, int(longest * GROWTH))
        if new_rows * new_tokens > self._limit_tokens:
            new_rows, new_tokens = count, longest
        if new_rows * new_tokens > self._limit_tokens:
            return False
        store = self._empty(new_rows, new_tokens)
        kept_rows, kept_tokens = min(rows, new_rows), min(tokens, new_tokens)
        store[:, :, :kept_rows, :, :kept_tokens] = self._store[:, :, :kept_rows, :, :kept_tokens]
        kept = [row if row is not None and row.length <= new_tokens else None for row in self._rows[:new_rows]]
        self._rows = [*kept, *[None] * (new_rows - len(kept))]
        self._hold(store)
        return True

    def _empty(self, rows: int, tokens: int) -> torch.Tensor:
        """[layer, k|v, row, kv_head, token, dim]: what a query reads lies together."""
        return self._kv.new_zeros((self._num_layers, 2, rows, self._heads, tokens, self._dim))

    def _hold(self, store: torch.Tensor) -> None:
        self._store = store
        self._flat = store.view(-1, self._dim)

    def _move(self, there: int, here: int) -> None:
        row = self._rows[there]
        assert row is not None  # the caller looked
        self._store[:, :, here, :, : row.length] = self._store[:, :, there, :, : row.length]
        self._rows[here], self._rows[there] = row, None

    def _fill(self, number: int, part: Slice) -> None:
        """Gathers a sequence that joins."""
        blocks = self._kv[list(part.block_ids)]  # [blocks, layers, 2, block_tokens, kv_heads, dim]
        flat = blocks.permute(1, 2, 4, 0, 3, 5).reshape(self._num_layers, 2, self._heads, -1, self._dim)
        self._store[:, :, number, :, : part.start] = flat[:, :, :, : part.start]
        self._rows[number] = _Row(part.sequence_id, list(part.block_ids), part.start)
