"""mooncake bench scheduler: how many decisions a second the Conductor makes, alone, with nobody to carry them out.

A cluster of half prefill and half decode instances is busy: each has some requests. The pool holds prefixes, each on some
nodes; each request begins with one of them and goes on with blocks of its own. A decision is from the arrival of a request to
its dispatch; what ends requests again is timed apart. Time is the processor's, of this thread: what else runs does not count.
"""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from mooncake_core.bench.statistics import Quantiles, quantiles
from mooncake_core.conductor import commands as c
from mooncake_core.conductor import events as e
from mooncake_core.conductor.conductor import Conductor
from mooncake_core.conductor.scheduler import SchedulerOptions, make_conductor
from mooncake_core.config.schema import FairnessConfig
from mooncake_core.wire.messages.membership import CostHint, InstanceOffer, ModelOffer
from mooncake_core.wire.messages.tiering import LOWER

BLOCK_TOKENS: Final = 512
KEY_BYTES: Final = 16
HOLDERS: Final = 3
"""Nodes that have the same prefix."""
OWN_BLOCKS: Final = 8
"""Of a prompt, beyond the prefix."""
IN_FLIGHT: Final = 8
"""Requests that each instance has, in the mean."""
WARM_UP: Final = 200
COST: Final = CostHint(
    prefill_base_s=0.003,
    prefill_per_token_s=1e-4,
    prefill_per_token2_s=5e-10,
    step_base_s=0.012,
    step_per_sequence_s=1e-4,
    step_per_context_token_s=2.5e-8,
    fetch_bytes_per_s=8e10,
    load_bytes_per_s=2.4e10,
)
"""Of a large model on one host of eight devices, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLoad:
    """One cell of the table."""

    instances: int
    blocks: int
    """That the pool holds, copies not counted."""
    matched: int
    """Leading blocks of each prompt that some nodes have."""
    decisions: int
    lower: float = 0.0
    """Share of each prefix, its tail, that lies below DRAM."""


class SchedulerCell(Struct, frozen=True, kw_only=True):
    """What was measured for it."""

    instances: int
    blocks: int
    matched: int
    lower: float
    decisions_per_s: float
    """From arrival to dispatch."""
    lifecycles_per_s: float
    """The ends of prefill and request as well."""
    decision_s: Quantiles


class SchedulerReport(Struct, frozen=True, kw_only=True):
    """Everything of a run that goes into its JSON."""

    policy: str
    admission: str
    seed: int
    cells: list[SchedulerCell]


def measure_all(
    loads: Sequence[SchedulerLoad],
    *,
    policy: str,
    admission: str,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> SchedulerReport:
    """One cell after the other."""
    cells = []
    for number, load in enumerate(loads):
        cells.append(_Bench(load, _conductor(policy, admission, seed), random.Random(seed)).measure())
        progress(number + 1)
    return SchedulerReport(policy=policy, admission=admission, seed=seed, cells=cells)


class _Bench:
    """A busy cluster, and requests one after the other."""

    def __init__(self, load: SchedulerLoad, conductor: Conductor, rng: random.Random) -> None:
        self._load = load
        self._conductor = conductor
        self._random = rng
        self._now = 0.0
        self._running: deque[str] = deque()
        self._number = 0
        self._prefixes = self._fill()

    def measure(self) -> SchedulerCell:
        load = self._load
        for _ in range(load.instances * IN_FLIGHT // 2 + WARM_UP):
            self._decide(self._arrival())
        while len(self._running) > load.instances * IN_FLIGHT // 2:
            self._end()
        took: list[float] = []
        ending_s = 0.0
        gc.collect()
        gc.freeze()
        for _ in range(load.decisions):
            arrival = self._arrival()
            took.append(self._decide(arrival))
            ending_s += self._end()
        gc.unfreeze()
        found = quantiles(took)
        assert found is not None
        return SchedulerCell(
            instances=load.instances,
            blocks=load.blocks,
            matched=load.matched,
            lower=load.lower,
            decisions_per_s=len(took) / sum(took),
            lifecycles_per_s=len(took) / (sum(took) + ending_s),
            decision_s=found,
        )

    def _fill(self) -> list[list[bytes]]:
        """Joins instances; stores prefixes."""
        prefills = self._load.instances // 2
        for number in range(self._load.instances):
            role = "prefill" if number < prefills else "decode"
            name = f"{role}-{number}"
            self._feed(e.InstanceJoined(name, "prefill" if number < prefills else "decode", _offer(name)))
        length = max(1, self._load.matched)
        in_dram = length - round(length * self._load.lower)
        prefixes = []
        for _ in range(max(1, self._load.blocks // length)):
            keys = self._keys(length)
            prefixes.append(keys)
            for holder in self._random.sample(range(prefills), min(HOLDERS, prefills)):
                self._feed(e.BlocksStored(f"prefill-{holder}", keys[:in_dram]))
                self._feed(e.BlocksStored(f"prefill-{holder}", keys[in_dram:], LOWER))
        return prefixes

    def _keys(self, number: int) -> list[bytes]:
        data = self._random.randbytes(number * KEY_BYTES)
        return [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]

    def _arrival(self) -> e.RequestArrived:
        self._number += 1
        keys = [*self._random.choice(self._prefixes)[: self._load.matched], *self._keys(OWN_BLOCKS)]
        return e.RequestArrived(
            request_id=str(self._number),
            model="model",
            prompt_tokens=len(keys) * BLOCK_TOKENS + self._random.randrange(1, BLOCK_TOKENS),
            max_tokens=BLOCK_TOKENS,
            block_keys=keys,
            tenant="",
            deadline=self._now + 600.0,
        )

    def _decide(self, arrival: e.RequestArrived) -> float:
        """Seconds from the arrival to the dispatch."""
        self._now += 0.5 / self._load.instances
        begun = time.thread_time()
        (command,) = self._conductor.handle(arrival, self._now)
        if isinstance(command, c.ReserveDecode):
            self._conductor.handle(e.ReservationGranted(arrival.request_id), self._now)
            self._running.append(arrival.request_id)
        return time.thread_time() - begun

    def _end(self) -> float:
        """Seconds for the ends of a prefill, and of the request that runs longest."""
        if len(self._running) < 2:
            return 0.0
        prefilled, ended = self._running[len(self._running) // 2], self._running.popleft()
        begun = time.thread_time()
        self._conductor.handle(e.PrefillEnded(prefilled, 0, 0.0), self._now)
        self._conductor.handle(e.RequestEnded(ended, released=True, output_tokens=100), self._now)
        return time.thread_time() - begun

    def _feed(self, event: e.Event) -> None:
        self._conductor.handle(event, self._now)


def _conductor(policy: str, admission: str, seed: int) -> Conductor:
    return make_conductor(
        SchedulerOptions(
            policy=policy,
            admission=admission,
            balancing_threshold=2.0,
            equal_within=0.05,
            spread_shared=True,
            replicate=True,
            ttft_slo_s=1e6,
            tbt_slo_s=1e6,
            decode_time_s=None,
            headroom=0.0,
            shed_weight=64.0,
            plan_roles=False,
            fairness=FairnessConfig(),
            seed=seed,
        )
    )


def _offer(name: str) -> InstanceOffer:
    model = ModelOffer(
        name="model",
        fingerprint=b"bench",
        block_tokens=BLOCK_TOKENS,
        block_bytes=BLOCK_TOKENS * 320 * 1024,
        max_context_tokens=2**31,
        vocab_size=2,
    )
    return InstanceOffer(model=model, num_blocks=1 << 20, local_node=name, cost=COST)
