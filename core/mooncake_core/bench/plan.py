"""mooncake plan: the smallest cluster that serves a trace within the objectives, found with the simulator.

A cluster that is too small is given up as soon as too many requests have missed an objective, and which one they missed says
whether prefill or decode instances are wanting. So for each size about as many splits are tried as the logarithm of the size,
and as many sizes as the logarithm of their range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
from msgspec import Struct

from mooncake_core.bench.trace_load import TraceLoad
from mooncake_core.errors import UsageError
from mooncake_core.sim.load import Setup
from mooncake_core.sim.records import Records
from mooncake_core.sim.settings import SystemSettings
from mooncake_core.sim.systems import simulate
from mooncake_core.units import format_duration, format_size
from mooncake_core.workload.trace import TraceSource

SMALLER: Final = (0.5, 0.7, 0.85, 0.95)
"""Shares of the smallest size that does, at which the table shows what less would do."""
LEAST_POOL: Final = 64
"""The pool is not made smaller than such a part of the hosts' DRAM."""


class Choice(Struct, frozen=True, kw_only=True):
    """What is chosen beside the number of instances."""

    policy: str
    admission: str
    dram: int
    """Bytes of the pool on each host."""
    disk: int
    """The same, on disk."""


class Trial(Struct, frozen=True, kw_only=True):
    """A cluster that was simulated."""

    prefill: int
    decode: int
    choice: Choice
    met: bool
    """Enough requests were served within the objectives."""
    goodput_ratio: float | None
    """None: it was given up."""
    served: int
    """Within the objectives, until it was given up."""
    missed_ttft: int
    missed_tbt: int
    """The time between tokens, or memory at the decode instances."""

    @property
    def nodes(self) -> int:
        return self.prefill + self.decode


class Plan(Struct, frozen=True, kw_only=True):
    """What was found."""

    best: Trial | None
    """None: no cluster of the allowed sizes does."""
    frontier: list[Trial]
    """No other that was simulated serves as much for less."""
    num_simulated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpace:
    """Where to search."""

    fewest_nodes: int
    most_nodes: int
    share: float = 0.99
    """Of requests that must be served within the objectives."""
    policies: Sequence[str] = ("kvcache-centric", "cache-aware")
    """The first is the one that sizes are found with; the others are tried with fewer nodes."""
    admissions: Sequence[str] = ("none", "predictive")


class _GivenUp(Exception):
    """Too many requests have missed an objective."""


@dataclass(slots=True)
class _Count:
    """Of the requests of a simulation."""

    ttft_s: float
    tbt_s: float
    most_missed: float
    served: int = 0
    missed: dict[str, int] = field(default_factory=lambda: {"ttft": 0, "tbt": 0})

    def see(self, records: Records) -> None:
        """A request has ended."""
        if records.texts["outcome"][-1] != "completed":
            missed = "ttft" if records.texts["cause"][-1] == "ttft" else "tbt"
        elif records.latest("ttft_s") > self.ttft_s:
            missed = "ttft"
        elif records.latest("tbt_s") > self.tbt_s:
            missed = "tbt"
        else:
            self.served += 1
            return
        self.missed[missed] += 1
        if sum(self.missed.values()) > self.most_missed:
            raise _GivenUp


class Planner:
    """Simulates clusters until the smallest one is known."""

    def __init__(
        self,
        setup: Setup,
        trace: TraceSource,
        space: PlanSpace,
        *,
        limit: int | None = None,
        tried: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        """`tried` hears of each simulation.

        Raises:
            UsageError: the trace cannot be read, or no cluster can meet the objectives; the message has the arithmetic.
        """
        if space.fewest_nodes < 2 or space.most_nodes < space.fewest_nodes:
            raise UsageError(
                f"expected a range of 2 nodes and more, one for prefill and one for decode, such as 4..64; "
                f"got {space.fewest_nodes}..{space.most_nodes}"
            )
        self._setup = setup
        self._space = space
        self._tried = tried
        self._system = SystemSettings(equal_within=0.05, spread_shared=True)  # the live scheduler's defaults
        self._load = TraceLoad(setup, trace, [self._system], limit)
        self._num_requests = self._load.num_requests(self._system)
        self._trials: dict[tuple[int, int, Choice], Trial] = {}
        self._prefill_share = 0.5
        self._check()

    def plan(self) -> Plan:
        """The smallest cluster, and what less or more would do."""
        space = self._space
        model, host = self._setup.model, self._setup.host
        first = Choice(
            policy=space.policies[0],
            admission=space.admissions[0],
            dram=host.dram_blocks * model.block_bytes,
            disk=0,
        )
        best = self._smallest(first)
        if best is not None:
            best = self._smaller_pool(self._fewer_nodes(best))
        self._round_off(best, first)
        return Plan(best=best, frontier=self._frontier(), num_simulated=len(self._trials))

    def _smallest(self, choice: Choice) -> Trial | None:
        """Sizes between those that do and those that do not are halved, by their ratio: small ones are soon simulated."""
        low, high = self._space.fewest_nodes, self._space.most_nodes
        best = self._split(high, choice)
        if not best.met:
            return None
        while low < high:
            found = self._split(min(high - 1, max(low, round((low * high) ** 0.5))), choice)
            if found.met:
                best, high = found, found.nodes
            else:
                low = found.nodes + 1
        return best

    def _split(self, nodes: int, choice: Choice) -> Trial:
        """Of so many nodes, a split that does, or the one that came nearest."""
        low, high = 1, nodes - 1
        prefill = round(nodes * self._prefill_share)
        best: Trial | None = None
        while low <= high:
            prefill = min(high, max(low, prefill))
            trial = self._try(prefill, nodes - prefill, choice)
            if trial.met:
                self._prefill_share = trial.prefill / trial.nodes
                return trial
            if best is None or trial.served > best.served:
                best = trial
            if trial.missed_ttft >= trial.missed_tbt:
                low = prefill + 1
            else:
                high = prefill - 1
            prefill = (low + high) // 2
        assert best is not None  # there is at least one split of two nodes
        return best

    def _fewer_nodes(self, best: Trial) -> Trial:
        """With other policies, admissions, or the hosts' disks in the pool."""
        space, host = self._space, self._setup.host
        choices = [
            msgspec.structs.replace(best.choice, policy=policy, admission=admission)
            for policy in space.policies
            for admission in space.admissions
        ]
        if host.ssd_blocks:
            choices.append(msgspec.structs.replace(best.choice, disk=host.ssd_blocks * self._setup.model.block_bytes))
        for choice in choices:
            while choice != best.choice and best.nodes > space.fewest_nodes:
                found = self._split(best.nodes - 1, choice)
                if not found.met:
                    break
                best = found
        return best

    def _smaller_pool(self, best: Trial) -> Trial:
        """Half the DRAM, as long as that does."""
        least = self._setup.host.dram_blocks * self._setup.model.block_bytes // LEAST_POOL
        while best.choice.dram // 2 >= max(least, self._setup.model.block_bytes):
            found = self._try(
                best.prefill, best.decode, msgspec.structs.replace(best.choice, dram=best.choice.dram // 2)
            )
            if not found.met:
                break
            best = found
        return best

    def _round_off(self, best: Trial | None, first: Choice) -> None:
        """Smaller clusters to the end, for the table."""
        nodes, choice = (best.nodes, best.choice) if best else (self._space.most_nodes, first)
        shares = SMALLER if best else (1.0,)
        for size in sorted({max(2, round(nodes * share)) for share in shares} - ({nodes} if best else set())):
            prefill = min(size - 1, max(1, round(size * self._prefill_share)))
            self._try(prefill, size - prefill, choice, to_the_end=True)

    def _frontier(self) -> list[Trial]:
        """Trials to the end, of which no other is as good in all and better in something."""
        whole = [trial for trial in self._trials.values() if trial.goodput_ratio is not None]
        found = [one for one in whole if not any(_better(other, one) for other in whole)]
        return sorted(found, key=_price)

    def _try(self, prefill: int, decode: int, choice: Choice, *, to_the_end: bool = False) -> Trial:
        key = prefill, decode, choice
        known = self._trials.get(key)
        if known is not None and (known.goodput_ratio is not None or not to_the_end):
            return known
        trial = self._trials[key] = self._simulate(prefill, decode, choice, to_the_end=to_the_end)
        self._tried(trial)
        return trial

    def _simulate(self, prefill: int, decode: int, choice: Choice, *, to_the_end: bool) -> Trial:
        setup, number = self._setup, self._num_requests
        model, slo = setup.model, setup.config.slo
        host = replace(
            setup.host, dram_blocks=choice.dram // model.block_bytes, ssd_blocks=choice.disk // model.block_bytes
        )
        system = msgspec.structs.replace(
            self._system, prefill=prefill, decode=decode, policy=choice.policy, admission=choice.admission
        )
        allowed = (1 - self._space.share) * number
        count = _Count(slo.ttft, slo.tbt, number if to_the_end else allowed)
        jobs = self._load.jobs(system, seed=setup.config.seed, speed=setup.config.speed)
        ended = True
        try:
            simulate(replace(setup, host=host), system, jobs, count.see)
        except _GivenUp:
            ended = False
        missed = count.missed
        return Trial(
            prefill=prefill,
            decode=decode,
            choice=choice,
            met=ended and sum(missed.values()) <= allowed,
            goodput_ratio=count.served / number if ended else None,
            served=count.served,
            missed_ttft=missed["ttft"],
            missed_tbt=missed["tbt"],
        )

    def _check(self) -> None:
        """What no number of nodes can change."""
        setup = self._setup
        config, costs, model = setup.config, setup.costs, setup.model
        held = setup.host.hbm_blocks * model.block_tokens
        seen: set[bytes] = set()
        too_long, too_slow, too_late = [], [], []
        for job in self._load.jobs(self._system, seed=config.seed, speed=config.speed):
            known = next((index for index, key in enumerate(job.keys) if key not in seen), len(job.keys))
            seen.update(job.keys)
            cached = known * model.block_tokens
            if job.prompt_tokens + config.engine.max_tokens > held:
                too_long.append((job.prompt_tokens, f"{job.prompt_tokens} + {config.engine.max_tokens} tokens"))
            if (prefill_s := costs.prefill_s(job.prompt_tokens, cached)) > config.slo.ttft:
                words = f"{job.prompt_tokens} tokens of which {cached} were seen before: {format_duration(prefill_s)}"
                too_late.append((prefill_s, words))
            if (step_s := costs.step_s(1, job.prompt_tokens)) > config.slo.tbt and job.output_tokens > 1:
                too_slow.append((step_s, f"{job.prompt_tokens} tokens of context: {format_duration(step_s)}"))
        shown = format_size(held * model.kv_bytes_per_token)
        self._refuse(too_long, f"need more KV memory than an instance has ({held} tokens, {shown})")
        self._refuse(too_late, f"take longer to prefill than {format_duration(config.slo.ttft)} on an idle instance")
        self._refuse(too_slow, f"take longer per token than {format_duration(config.slo.tbt)} on an idle instance")

    def _refuse(self, missing: Sequence[tuple[float, str]], what: str) -> None:
        share = len(missing) / self._num_requests
        if share > 1 - self._space.share:
            _, example = max(missing)
            raise UsageError(
                f"no number of nodes does: {len(missing)} of {self._num_requests} requests ({share:.1%}) {what}; "
                f"{1 - self._space.share:.1%} may miss. The worst has {example}"
            )


def _price(trial: Trial) -> tuple[int, int, int]:
    """What is paid: nodes first."""
    return trial.nodes, trial.choice.dram * trial.nodes, trial.choice.disk * trial.nodes


def _better(one: Trial, other: Trial) -> bool:
    """Nowhere worse, and somewhere better."""
    assert one.goodput_ratio is not None
    assert other.goodput_ratio is not None
    prices = list(zip(_price(one), _price(other), strict=True))
    if one.goodput_ratio < other.goodput_ratio or any(mine > theirs for mine, theirs in prices):
        return False
    return one.goodput_ratio > other.goodput_ratio or any(mine < theirs for mine, theirs in prices)
