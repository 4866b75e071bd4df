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
from mooncake_core.kvcache.prefix_index import LowerBlocks, Rows

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
    fetched, loaded, transfer_s = transfers(request, costs, local, used, lower)
    prefill_s = costs.prefill_s(request.prompt_tokens, used * request.block_tokens)
    best = (transfer_s + prefill_s).argmin(axis=0)
    columns = np.arange(len(best))
    return Cuts(*(found[best, columns] for found in (used, fetched, loaded, transfer_s, prefill_s)))


def transfers(
    request: RequestView, costs: PrefillCosts, local: Ints, used: Ints, lower: Sequence[LowerBlocks]
) -> tuple[Ints, Ints, Floats]:
    """Blocks that are fetched, such as are loaded, and how long both take, where so many leading ones are used: a column, or
    several of them."""
    fetched: Ints = np.maximum(used - local, 0)
    loaded: Ints = np.zeros_like(used)
    for run in lower:
        if run.only_there:
            beyond = np.minimum(used, run.end) - np.maximum(local, run.start)
            loaded += np.maximum(beyond, 0)
        rows = _having(run, local)
        if len(rows):
            here = np.minimum(np.maximum(used[..., rows] - run.start, 0), run.end - run.start)
            (loaded if run.only_there else fetched)[..., rows] += here
    transfer_s = costs.fetch_s(fetched * request.block_bytes) + costs.load_s(loaded * request.block_bytes)
    return fetched, loaded, transfer_s


def _having(run: LowerBlocks, local: Ints) -> Rows:
    """Rows whose local prefix has a run: then it has the whole of it."""
    if isinstance(run.rows, np.ndarray):
        having: Rows = run.rows[local[run.rows] >= run.end]
        return having
    return [row for row in run.rows if local.item(row) >= run.end]


def _borders(lower: Sequence[LowerBlocks]) -> Ints:
    """Where runs begin or end, the last one first."""
    found = sorted({border for run in lower for border in (run.start, run.end)}, reverse=True)
    return np.array(found[:: -(-len(found) // MOST_BORDERS)], np.int64)
