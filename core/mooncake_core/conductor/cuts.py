"""How much of a prefix is worth using, where some of it lies below DRAM and has to be loaded first.

To load a block takes as long wherever it stands in the prompt; to compute it takes the longer the more comes before it. So a
run of blocks that are loaded saves most at its end: all of a run pays, or nothing of it, and only the ends of runs need be
looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from mooncake_core.conductor.cost import Floats, Ints, PrefillCosts
from mooncake_core.kvcache.prefix_index import LowerBlocks

if TYPE_CHECKING:
    from mooncake_core.conductor.policies.contract import RequestView

MOST_BORDERS: Final = 32
"""Of runs that are looked at; of more, which are short then, some are passed over."""


class Cuts(Struct, frozen=True, gc=False):
    """For each instance the cut that is soonest done: columns."""

    used: Ints
    """Leading blocks up to it."""
    fetched: Ints
    """Of these, from other nodes: also what its own node has below DRAM, and another one in DRAM."""
    loaded: Ints
    """Of these, from below DRAM, wherever that is."""
    transfer_s: Floats
    """To fetch, and to load."""
    prefill_s: Floats


def soonest(request: RequestView, costs: PrefillCosts, local: Ints, ends: Ints, lower: Sequence[LowerBlocks]) -> Cuts:
    """Cuts of prefixes of which each instance has `local` blocks at its own node, and would use up to `ends`. Of equal cuts
    the longer one."""
    borders = _borders(lower)
    used = np.concatenate((ends[None], np.minimum(borders[:, None], ends), local[None]))
    fetched, loaded = np.maximum(used - local, 0), _loaded_beyond(local, used, lower)
    whole = np.iinfo(np.int64).max
    steps = np.concatenate(([whole], borders, [whole]))
    for run in lower:  # who has it locally has the whole of it
        rows = np.asarray(run.rows, np.intp)
        rows = rows[local[rows] >= run.end]
        if len(rows):
            blocks = np.clip(steps - run.start, 0, run.end - run.start)[:, None]
            (loaded if run.only_there else fetched)[:, rows] += blocks
    transfer_s = costs.fetch_s(fetched * request.block_bytes) + costs.load_s(loaded * request.block_bytes)
    prefill_s = costs.prefill_s(request.prompt_tokens, used * request.block_tokens)
    best = (transfer_s + prefill_s).argmin(axis=0)
    columns = np.arange(len(best))
    return Cuts(*(found[best, columns] for found in (used, fetched, loaded, transfer_s, prefill_s)))


def _borders(lower: Sequence[LowerBlocks]) -> Ints:
    """Where runs begin or end, the last one first."""
    found = sorted({border for run in lower for border in (run.start, run.end)}, reverse=True)
    return np.array(found[:: -(-len(found) // MOST_BORDERS)], np.int64)


def _loaded_beyond(local: Ints, used: Ints, lower: Sequence[LowerBlocks]) -> Ints:
    """Of the blocks beyond local ones, those that nobody has in DRAM."""
    borders, loaded = [0], [0]
    for run in lower:
        if run.only_there:
            borders += [run.start, run.end]
            loaded += [loaded[-1], loaded[-1] + run.end - run.start]
    up_to = np.interp(np.stack((local, *used)), borders, loaded)
    found: Ints = np.maximum(up_to[1:] - up_to[0], 0).astype(np.int64)
    return found
