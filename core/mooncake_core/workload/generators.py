"""Loads that are made by a seed: how requests come, and what they share with each other."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
from msgspec import Struct

from mooncake_core.workload.request import TraceRequest

REPORT_INPUTS: Final = (16_384, 32_768, 65_536, 131_072)
"""Lengths of the prompts of the technical report's simulated data (section 8.1.1)."""


class Arrivals(Struct, frozen=True, kw_only=True):
    """How requests, or sessions, come."""

    kind: Literal["poisson", "bursty"] = "poisson"
    """bursty: gaps have a gamma distribution, as BurstGPT's authors found them (arXiv 2401.17644)."""
    rate: float = 1.0
    """Per second, in the mean."""
    burstiness: float = 3.0
    """Of bursty arrivals: standard deviation of gaps over their mean; 1 is as poisson."""


class Families(Struct, frozen=True, kw_only=True):
    """Prompts that begin with what all of their family begin with."""

    input_tokens: int = 4096
    output_tokens: int = 256
    shared: float = 0.5
    """Of each prompt."""
    families: int = 16
    skew: float = 0.0
    """Exponent of Zipf's law over families; 0: all are equally popular."""
    spread: float = 0.0
    """Of lengths: standard deviation of their logarithms, 0: all are alike."""


class Sessions(Struct, frozen=True, kw_only=True):
    """Conversations: a turn's prompt is all that was said before, and something new."""

    system_tokens: int = 1024
    """That all conversations begin with."""
    turn_tokens: int = 512
    """New in each turn, in the mean."""
    output_tokens: int = 256
    """Of each answer, in the mean."""
    turns: float = 4.0
    """In the mean; geometric."""
    think_s: float = 60.0
    """From a turn's arrival to the next one's, in the mean; exponential. The answer has to fit in."""
    spread: float = 0.5
    """Of lengths, as with families."""


def report(input_tokens: int) -> Families:
    """The technical report's simulated data: half of each prompt is cached, answers have 512 tokens."""
    return Families(input_tokens=input_tokens, output_tokens=512, shared=0.5, families=16)


def generate(
    load: Families | Sessions, arrivals: Arrivals, *, requests: int, block_tokens: int, seed: int
) -> Iterator[TraceRequest]:
    """So many requests, in the order of their times; the same for the same arguments."""
    made = (
        _families(load, arrivals, block_tokens, seed)
        if isinstance(load, Families)
        else _sessions(load, arrivals, block_tokens, seed)
    )
    return itertools.islice(made, requests)


def _families(load: Families, arrivals: Arrivals, block_tokens: int, seed: int) -> Iterator[TraceRequest]:
    rng = np.random.default_rng(seed)
    # Prefixes are numbered below own blocks; none is longer than the longest prompt that is made.
    longest = -(-_longest(load.input_tokens, load.spread) // block_tokens)
    fresh = itertools.count(load.families * longest)
    popularity = np.arange(1, load.families + 1) ** -load.skew
    shares = popularity / popularity.sum()
    at_s = 0.0
    while True:
        at_s += _gap_s(rng, arrivals, arrivals.rate)
        family = int(rng.choice(load.families, p=shares) if load.skew else rng.integers(load.families))
        prompt = _length(rng, load.input_tokens, load.spread)
        shared = int(prompt * load.shared) // block_tokens
        own = -(-prompt // block_tokens) - shared
        yield TraceRequest(
            arrival_s=at_s,
            input_tokens=prompt,
            output_tokens=_length(rng, load.output_tokens, load.spread),
            block_ids=(*range(family * longest, family * longest + shared), *itertools.islice(fresh, own)),
            block_tokens=block_tokens,
        )


class _Session:
    """A conversation that goes on."""

    def __init__(self, load: Sessions, number: int, began_s: float, block_tokens: int, seed: int) -> None:
        self._load = load
        self._rng = np.random.default_rng((seed, number))
        self._block_tokens = block_tokens
        self._number = number
        self._ids = list(range(load.system_tokens // block_tokens))
        """Of the full blocks of what was said; the first ones are the same for all."""
        self._context = load.system_tokens
        self._turns_left = int(self._rng.geometric(1 / load.turns))
        self.next_s = began_s

    def turn(self, fresh: Iterator[int]) -> TraceRequest | None:
        """The next one, which comes at next_s; None when there is none."""
        if not self._turns_left:
            return None
        self._turns_left -= 1
        load, rng = self._load, self._rng
        self._context += _length(rng, load.turn_tokens, load.spread)
        prompt, answer = self._context, _length(rng, load.output_tokens, load.spread)
        full = prompt // self._block_tokens
        self._ids.extend(itertools.islice(fresh, max(0, full - len(self._ids))))
        partial = itertools.islice(fresh, 1 if prompt % self._block_tokens else 0)
        request = TraceRequest(
            arrival_s=self.next_s,
            input_tokens=prompt,
            output_tokens=answer,
            block_ids=(*self._ids[:full], *partial),
            block_tokens=self._block_tokens,
            session=str(self._number),
        )
        self._context += answer
        self.next_s += float(rng.exponential(load.think_s))
        return request


def _sessions(load: Sessions, arrivals: Arrivals, block_tokens: int, seed: int) -> Iterator[TraceRequest]:
    rng = np.random.default_rng(seed)
    fresh = itertools.count(load.system_tokens // block_tokens)
    rate = arrivals.rate / load.turns  # of sessions, for so many requests
    starts_s = 0.0
    running: list[tuple[float, int, _Session]] = []
    for number in itertools.count():
        starts_s += _gap_s(rng, arrivals, rate)
        while running and running[0][0] <= starts_s:
            _, other, session = heapq.heappop(running)
            if request := session.turn(fresh):
                yield request
                heapq.heappush(running, (session.next_s, other, session))
        heapq.heappush(running, (starts_s, number, _Session(load, number, starts_s, block_tokens, seed)))


def _gap_s(rng: np.random.Generator, arrivals: Arrivals, rate: float) -> float:
    if arrivals.kind == "poisson":
        return float(rng.exponential(1 / rate))
    shape = arrivals.burstiness**-2
    return float(rng.gamma(shape, 1 / (rate * shape)))


_MOST_DEVIATIONS: Final = 4.0
"""Lengths are cut off there, so that none is longer than any model's context."""


def _length(rng: np.random.Generator, mean: int, spread: float) -> int:
    """Log-normal, with that mean."""
    if not spread:
        return mean
    deviations = min(float(rng.standard_normal()), _MOST_DEVIATIONS)
    return max(1, round(mean * math.exp(spread * deviations - spread**2 / 2)))


def _longest(mean: int, spread: float) -> int:
    return max(1, round(mean * math.exp(spread * _MOST_DEVIATIONS - spread**2 / 2)))
