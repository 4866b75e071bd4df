"""Bit masks of the nodes that have a block, by block key. A key that nobody has is not there."""

from __future__ import annotations

from collections.abc import Sequence


def add(masks: dict[bytes, int], bit: int, keys: Sequence[bytes]) -> None:
    """A node has these blocks."""
    before, after = 0, bit
    for key in keys:
        mask = masks.get(key, 0)
        if mask != before:
            before, after = mask, mask | bit
        masks[key] = after  # one object for neighbours that are held alike: a mask of a thousand holders has 160 bytes


def take(masks: dict[bytes, int], bit: int, keys: Sequence[bytes]) -> None:
    """A node has them no more."""
    before = after = 0
    for key in keys:
        mask = masks.get(key, 0)
        if mask != before:
            before, after = mask, mask & ~bit
        if after:
            masks[key] = after
        else:
            masks.pop(key, None)
