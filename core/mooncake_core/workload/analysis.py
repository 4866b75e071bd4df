"""What can be said of a trace before anything serves it: its lengths, and how much of it a cache could have.

A hit is a block whose whole prefix was used before: a prompt's leading blocks, until the first one that is not there. A partly
filled last block counts as a block where the trace names it (as in the published figures; the live system keeps full blocks
only), with the tokens that it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from mooncake_core.errors import UsageError
from mooncake_core.workload.blocks import PrefixNames
from mooncake_core.workload.request import TraceRequest
from mooncake_core.workload.stack_distances import Ints, stack_distances


class Lengths(Struct, frozen=True, kw_only=True):
    """Of prompts or answers, in tokens; quantiles by nearest rank."""

    mean: float
    p50: int
    p90: int
    p99: int
    longest: int


class Hits(Struct, frozen=True, kw_only=True):
    """Shares of all blocks and all prompt tokens."""

    blocks: float
    tokens: float
    tokens_last_half: float
    """Of the prompts of the last half of the requests: the cache is warm by then."""


class CapacityHits(Struct, frozen=True, kw_only=True):
    """With an LRU cache of a size."""

    capacity_blocks: int
    blocks: float
    tokens: float


class TraceSummary(Struct, frozen=True, kw_only=True):
    """All about a trace."""

    requests: int
    span_s: float
    """From the first arrival to the last one."""
    requests_per_s: float
    gap_variation: float
    """Standard deviation of the gaps between arrivals over their mean: 1 if they come by chance, more in bursts."""
    sessions: int
    input_tokens: Lengths
    output_tokens: Lengths
    block_tokens: int
    blocks: int
    """Of all prompts."""
    unique_blocks: int
    unbounded: Hits
    """With a cache that loses nothing."""
    lru: list[CapacityHits]


def analyse(requests: Iterable[TraceRequest], capacities: Sequence[int] | None = None) -> TraceSummary:
    """Goes through a trace once; LRU hits are given for some capacities in blocks, by default `default_capacities`.

    Raises:
        UsageError: there is no request, or blocks have different sizes.
    """
    seen = _Seen()
    for request in requests:
        seen.add(request)
    return seen.summary(capacities)


class _Seen:
    def __init__(self) -> None:
        self._names = PrefixNames()
        self._arrivals: list[float] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._sessions: set[str] = set()
        self._uses: list[int] = []
        """Of blocks. A prompt's last one comes first: it is what LRU gives up first of it."""
        self._named: list[int] = []
        """Blocks of each request that the trace names."""
        self._block_tokens = 0

    def add(self, request: TraceRequest) -> None:
        if self._block_tokens not in (0, request.block_tokens):
            raise UsageError(
                f"expected blocks of {self._block_tokens} tokens as in the first request, request {len(self._inputs) + 1} has "
                f"blocks of {request.block_tokens}: `mooncake trace convert --block-tokens` makes them alike"
            )
        self._block_tokens = request.block_tokens
        self._arrivals.append(request.arrival_s)
        self._inputs.append(request.input_tokens)
        self._outputs.append(request.output_tokens)
        if request.session is not None:
            self._sessions.add(request.session)
        self._uses.extend(reversed(self._names.name(request.block_ids)))
        self._named.append(len(request.block_ids))

    def summary(self, capacities: Sequence[int] | None) -> TraceSummary:
        if not self._inputs:
            raise UsageError("expected the requests of a trace, found none")
        inputs = np.array(self._inputs)
        reuse = _Reuse(self._uses, np.array(self._named), inputs, self._block_tokens)
        span_s = self._arrivals[-1] - self._arrivals[0]
        chosen = default_capacities(len(self._names)) if capacities is None else capacities
        return TraceSummary(
            requests=len(inputs),
            span_s=span_s,
            requests_per_s=(len(inputs) - 1) / span_s if span_s else 0.0,
            gap_variation=_variation(self._arrivals),
            sessions=len(self._sessions),
            input_tokens=_lengths(inputs),
            output_tokens=_lengths(np.array(self._outputs)),
            block_tokens=self._block_tokens,
            blocks=reuse.num_blocks,
            unique_blocks=len(self._names),
            unbounded=reuse.unbounded(),
            lru=[reuse.lru(capacity) for capacity in chosen],
        )


class _Reuse:
    """Which uses of blocks find them, by the capacity of a cache."""

    def __init__(self, uses: Sequence[int], named: Ints, inputs: Ints, block_tokens: int) -> None:
        self.num_blocks = int((-(-inputs // block_tokens)).sum())
        self._num_tokens = int(inputs.sum())
        self._inputs = inputs
        self._request = np.repeat(np.arange(len(named)), named)
        # The deepest block of a prompt comes first: so many of its blocks were used before this one.
        deeper = np.arange(len(uses)) - np.repeat(np.cumsum(named) - named, named)
        depth = named[self._request] - 1 - deeper
        self._tokens = np.minimum(inputs[self._request] - depth * block_tokens, block_tokens)
        distances = stack_distances(np.array(uses, dtype=np.int64))
        # A prompt is looked up before any of it is used: its own deeper blocks do not count. They lie deeper in the stack, so a
        # block that is there has its prefix there too.
        self._distances = np.where(distances > 0, distances - deeper, 0)
        order = np.argsort(self._distances, kind="stable")
        self._ordered = self._distances[order]
        self._tokens_until = np.concatenate([[0], np.cumsum(self._tokens[order])])

    def unbounded(self) -> Hits:
        hit = self._distances > 0
        late = self._request >= len(self._inputs) // 2
        late_tokens = int(self._inputs[len(self._inputs) // 2 :].sum())
        return Hits(
            blocks=float(hit.sum()) / self.num_blocks,
            tokens=float(self._tokens[hit].sum()) / self._num_tokens,
            tokens_last_half=float(self._tokens[hit & late].sum()) / late_tokens,
        )

    def lru(self, capacity: int) -> CapacityHits:
        first, last = np.searchsorted(self._ordered, [0, capacity], side="right")
        last = max(first, last)
        tokens = int(self._tokens_until[last] - self._tokens_until[first])
        return CapacityHits(
            capacity_blocks=capacity,
            blocks=float(last - first) / self.num_blocks,
            tokens=tokens / self._num_tokens,
        )


def default_capacities(unique_blocks: int) -> list[int]:
    """From a thousandth of all blocks up to all of them, six in each decade."""
    steps = [
        factor * 10**power // 10 for power in range(len(str(unique_blocks)) + 1) for factor in (10, 15, 20, 30, 50, 70)
    ]
    chosen = sorted({step for step in steps if unique_blocks <= 1000 * step and step < unique_blocks})
    return [*chosen, unique_blocks] if unique_blocks else []


def _lengths(values: npt.NDArray[np.int64]) -> Lengths:
    ordered = np.sort(values)
    p50, p90, p99 = (int(ordered[max(0, -(-len(ordered) * share // 100) - 1)]) for share in (50, 90, 99))
    return Lengths(mean=float(ordered.mean()), p50=p50, p90=p90, p99=p99, longest=int(ordered[-1]))


def _variation(arrivals: Sequence[float]) -> float:
    gaps = np.array([later - earlier for earlier, later in pairwise(arrivals)])
    return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else 0.0
