"""What a scheduling policy is: it judges, for one request, what each prefill instance would take to the first token.

It does so for all instances at once: a column has one entry for each of them, and arithmetic goes over whole columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import numpy as np
from msgspec import Struct, structs

from mooncake_core.conductor.cost import Floats, Ints, PrefillCosts
from mooncake_core.conductor.cuts import soonest, transfers
from mooncake_core.kvcache.prefix_index import Lengths, LowerBlocks, Rows

Blocks = TypeVar("Blocks", int, Ints)

FEW: Final = 16
"""Numbers of blocks that are sooner looked at one after the other than instances all at once."""


class PrefillViews(Struct, frozen=True, gc=False):
    """The prefill instances as a policy sees them."""

    lengths: Lengths
    """Leading blocks of this prompt that an instance's local node has."""
    queue_s: Floats
    """Predicted time until it has finished what was dispatched to it before and goes first."""
    costs: PrefillCosts
    lower: Sequence[LowerBlocks] = ()
    """What of the prompt somebody has below DRAM, and has to load."""

    @property
    def local_blocks(self) -> Ints:
        """The same as a column."""
        return self.lengths.column()

    def at_least(self, number: int) -> PrefillViews:
        """As if all had so many leading blocks, in DRAM."""
        beyond = [structs.replace(run, start=max(run.start, number)) for run in self.lower if run.end > number]
        return structs.replace(self, lengths=self.lengths.at_least(number), lower=beyond)


class RequestView(Struct, frozen=True, gc=False):
    """A request as a policy sees it."""

    number: int
    """So many came before it."""
    prompt_tokens: int
    block_tokens: int
    block_bytes: int
    best_blocks: int
    """Leading blocks that the pool as a whole can supply."""


class Score(Struct, frozen=True, gc=False):
    """How an instance would do."""

    prefill: str
    local_blocks: int
    """Leading blocks that it would take from its local node."""
    fetched_blocks: int
    """Blocks that it would fetch rather than recompute: beyond the local ones, or such as another node has in DRAM, and its
    own below."""
    queue_s: float
    transfer_s: float
    prefill_s: float
    held_blocks: int
    """Leading blocks that its local node has, used or not."""
    loaded_blocks: int = 0
    """Of those it would use: below DRAM, here or elsewhere."""
    recomputed_blocks: int = 0
    """Blocks that it could have, and would rather compute than load or fetch."""

    @property
    def matched_blocks(self) -> int:
        """Leading blocks that it would not compute."""
        return self.local_blocks + self.fetched_blocks

    @property
    def ttft_s(self) -> float:
        """Predicted time to first token."""
        return self.queue_s + self.transfer_s + self.prefill_s


class LowerScores(Struct, frozen=True, gc=False):
    """What a Score has of tiers below DRAM: columns."""

    held_blocks: Ints
    loaded_blocks: Ints
    recomputed_blocks: Ints


class Scores(Struct, frozen=True, gc=False):
    """How all of them would do: columns of what a Score has."""

    local: Ints | Lengths
    """As Lengths where they were judged by number, not by instance: few read the column."""
    fetched: Ints | Lengths
    queue_s: Floats
    transfer_s: Floats
    prefill_s: Floats
    lower: LowerScores | None = None
    """None: nothing of the prompt lies below DRAM."""

    @property
    def local_blocks(self) -> Ints:
        """Leading blocks that each would take from its local node."""
        return _column(self.local)

    @property
    def fetched_blocks(self) -> Ints:
        """Blocks that each would fetch."""
        return _column(self.fetched)

    @property
    def ttft_s(self) -> Floats:
        """Predicted times to first token."""
        return self.queue_s + self.transfer_s + self.prefill_s

    @property
    def held_blocks(self) -> Ints:
        """Leading blocks that each one's local node has, used or not."""
        return self.local_blocks if self.lower is None else self.lower.held_blocks

    def of(self, row: int, prefill: str) -> Score:
        """One instance's."""
        local, lower = self.local.item(row), self.lower
        return Score(
            prefill,
            local,
            self.fetched.item(row),
            self.queue_s.item(row),
            self.transfer_s.item(row),
            self.prefill_s.item(row),
            local if lower is None else lower.held_blocks.item(row),
            0 if lower is None else lower.loaded_blocks.item(row),
            0 if lower is None else lower.recomputed_blocks.item(row),
        )


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The scheduler's part of the configuration, as far as policies use it."""

    balancing_threshold: float = 2.0


class Policy(ABC):
    """Stateless: what it should remember is the Conductor's business."""

    uses_pool = True
    """Instances take blocks from other nodes; what an instance lacks may be copied to its node."""

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings

    @abstractmethod
    def score(self, request: RequestView, instances: PrefillViews) -> Scores:
        """What is expected of each instance."""

    def rank(self, request: RequestView, scores: Scores) -> Floats:
        """The instance with the smallest one is taken, of equal ones any. By default the predicted time to first token."""
        return scores.ttft_s


class Wanted(Protocol):
    """Blocks that an instance with so many of its own is to fetch: of one number of them, or of a column."""

    def __call__(self, local: Blocks, /) -> Blocks: ...


def fetching(request: RequestView, instances: PrefillViews, wanted: Wanted) -> Scores:
    """Scores where each instance fetches what is wanted, unless it is sooner done without: recomputing that is then cheaper.
    Where blocks have to be loaded from below DRAM, it uses what pays of them, local ones too."""
    costs, token_bytes = instances.costs, request.block_bytes / request.block_tokens
    if instances.lower and costs.loading_may_be_dearer(token_bytes):
        return _by_cut(request, instances, wanted)
    dearer = costs.may_be_dearer(token_bytes)
    if dearer or not costs.alike or len(instances.lengths.groups) > FEW:
        scores = _by_instance(request, instances, wanted, dearer=dearer)
    else:
        scores = _by_length(request, instances, wanted)
    return _loading_all(request, instances, scores) if instances.lower else scores


def not_fetching(request: RequestView, instances: PrefillViews) -> Scores:
    """Scores where each instance uses what its local node has, as far as that pays, and no more."""
    return fetching(request, instances, _nothing)


def _nothing(local: Blocks) -> Blocks:
    return local * 0


def _by_instance(request: RequestView, instances: PrefillViews, wanted: Wanted, *, dearer: bool) -> Scores:
    """All at once, whatever each is like."""
    local = instances.local_blocks
    fetched = wanted(local)
    transfer_s = instances.costs.fetch_s(fetched * request.block_bytes)
    prefill_s = instances.costs.prefill_s(request.prompt_tokens, (local + fetched) * request.block_tokens)
    if dearer:
        alone_s = instances.costs.prefill_s(request.prompt_tokens, local * request.block_tokens)
        sooner_alone = transfer_s + prefill_s > alone_s
        fetched = np.where(sooner_alone, 0, fetched)
        transfer_s = np.where(sooner_alone, 0.0, transfer_s)
        prefill_s = np.where(sooner_alone, alone_s, prefill_s)
    return Scores(local, fetched, instances.queue_s, transfer_s, prefill_s)


def _loading_all(request: RequestView, instances: PrefillViews, scores: Scores) -> Scores:
    """The same with what lies below DRAM loaded first, all of which pays."""
    local = scores.local_blocks
    used = local + scores.fetched_blocks
    fetched, loaded, transfer_s = transfers(request, instances.costs, local, used, instances.lower)
    lower = LowerScores(local, loaded, np.zeros_like(local))
    return Scores(used - fetched, fetched, scores.queue_s, transfer_s, scores.prefill_s, lower)


def _by_cut(request: RequestView, instances: PrefillViews, wanted: Wanted) -> Scores:
    local = instances.local_blocks
    ends = local + wanted(local)
    cuts = soonest(request, instances.costs, local, ends, instances.lower)
    lower = LowerScores(local, cuts.loaded, ends - cuts.used)
    used_local = cuts.used - cuts.fetched
    return Scores(used_local, cuts.fetched, instances.queue_s, cuts.transfer_s, cuts.prefill_s, lower)


def _by_length(request: RequestView, instances: PrefillViews, wanted: Wanted) -> Scores:
    """The same, once for each number of blocks that instances have: all take as long for it, apart from their corrections."""
    costs, lengths = instances.costs, instances.lengths

    def expected(blocks: int) -> tuple[int, float, float]:
        more = wanted(blocks)
        fetch_s = costs.exact_fetch_s(more * request.block_bytes)
        return more, fetch_s, costs.exact_prefill_s(request.prompt_tokens, (blocks + more) * request.block_tokens)

    transfer_s, exact_s = np.empty(lengths.num_rows), np.empty(lengths.num_rows)
    fetched, fetch_s, compute_s = expected(lengths.rest)
    transfer_s.fill(fetch_s)
    exact_s.fill(compute_s)
    groups: list[tuple[int, Rows]] = []
    for blocks, rows in lengths.groups:
        more, fetch_s, compute_s = expected(blocks)
        groups.append((more, rows))
        for row in rows if isinstance(rows, list) else (rows,):  # one by one where they are few: sooner done
            transfer_s[row], exact_s[row] = fetch_s, compute_s
    more_blocks = Lengths(lengths.num_rows, groups, fetched)
    return Scores(lengths, more_blocks, instances.queue_s, transfer_s, costs.corrected(exact_s))


def _column(blocks: Ints | Lengths) -> Ints:
    return blocks.column() if isinstance(blocks, Lengths) else blocks
