"""mooncake bench pairs: policies and admissions against Algorithm 1 with predictive rejection, at equal budgets.

Both contenders get the same number of trials for their parameters on the first part of a trace; what is reported is the rest of
it, and generated loads that neither was tried on. Goodput counts requests that meet both objectives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from msgspec import Struct

from mooncake_core.sim.jobs import make_jobs
from mooncake_core.sim.load import Setup
from mooncake_core.sim.settings import SystemSettings
from mooncake_core.sim.summary import summarise
from mooncake_core.sim.systems import simulate
from mooncake_core.workload.generators import Arrivals, Families, Sessions, generate, report
from mooncake_core.workload.request import TraceRequest

SEARCH_SPEED: Final = 2.0
SPEEDS: Final = (1.0, 2.0, 3.0, 4.0)
POLICIES: Final = ("kvcache-centric", "cache-aware", "least-loaded", "round-robin", "random")
ADMISSIONS: Final = ("none", "baseline", "early", "predictive", "learned-lengths", "headroom")
PAPERS: Final = ("kvcache-centric", "predictive")
OURS: Final = ("kvcache-centric", "headroom")
PAPERS_GRID: Final = {"balancing_threshold": (1.0, 2.0, 4.0), "decode_time": (None, 20.0, 60.0)}
OUR_GRID: Final = {"shed_weight": (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)}
"""Nine trials each."""
GENERATORS: Final[Mapping[str, tuple[Families | Sessions, float]]] = {
    "families": (Families(input_tokens=8192, spread=0.5), 0.25),
    "sessions": (Sessions(), 0.75),
    "report-16k": (report(16_384), 0.12),
}
"""With arrivals per second and node at speed 1."""


class Trial(Struct, frozen=True, kw_only=True):
    """A pair with parameters, and what it served in the first part."""

    policy: str
    admission: str
    parameters: dict[str, float | None]
    goodput_ratio: float


class Duel(Struct, frozen=True, kw_only=True):
    """Both contenders on the same load."""

    load: str
    speed: float
    seeds: int
    papers: float
    """Goodput ratio, mean over seeds."""
    ours: float
    worst: float
    """Smallest of ours over the paper's, over seeds."""


class Cell(Struct, frozen=True, kw_only=True):
    """A pair with default parameters, on the second part at SEARCH_SPEED."""

    policy: str
    admission: str
    goodput_ratio: float


class PairsReport(Struct, frozen=True, kw_only=True):
    """Everything of a run that goes into its JSON."""

    papers: list[Trial]
    ours: list[Trial]
    duels: list[Duel]
    table: list[Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsScope:
    """How much is run."""

    split_s: float = 1800.0
    """Of the trace: what came before is searched on."""
    seeds: int = 10
    first_seed: int = 0
    requests: int = 800
    """Of each generated load."""


class PairsRun:
    """A trace, and the cluster that is to serve it."""

    def __init__(
        self,
        setup: Setup,
        cluster: SystemSettings,
        requests: Sequence[TraceRequest],
        scope: PairsScope,
        progress: Callable[[str], None],
    ) -> None:
        """`progress` hears what was simulated."""
        self._setup = replace(setup, config=msgspec.structs.replace(setup.config, sample_interval=0.0))
        self._cluster = cluster
        self._scope = scope
        self._progress = progress
        self._first = [one for one in requests if one.arrival_s < scope.split_s]
        self._second = [
            msgspec.structs.replace(one, arrival_s=one.arrival_s - scope.split_s)
            for one in requests
            if one.arrival_s >= scope.split_s
        ]

    def execute(self) -> PairsReport:
        """The search, the duels, and the table of all pairs."""
        papers, ours = self._search(PAPERS, PAPERS_GRID), self._search(OURS, OUR_GRID)
        contenders = [self._system(_best(trials)) for trials in (papers, ours)]
        duels = [self._duel("trace", self._second, speed, contenders) for speed in SPEEDS]
        for name, (load, rate) in GENERATORS.items():
            duels += [self._generated(name, load, rate, speed, contenders) for speed in SPEEDS]
        table = [
            Cell(
                policy=policy,
                admission=admission,
                goodput_ratio=self._serve(self._plain(policy, admission), self._second, SEARCH_SPEED),
            )
            for policy in POLICIES
            for admission in ADMISSIONS
        ]
        return PairsReport(papers=papers, ours=ours, duels=duels, table=table)

    def _search(self, pair: tuple[str, str], grid: Mapping[str, Sequence[float | None]]) -> list[Trial]:
        trials = []
        for values in itertools.product(*grid.values()):
            parameters = dict(zip(grid, values, strict=True))
            system = msgspec.structs.replace(self._plain(*pair), **parameters)
            ratio = self._serve(system, self._first, SEARCH_SPEED)
            trials.append(Trial(policy=pair[0], admission=pair[1], parameters=parameters, goodput_ratio=ratio))
        return trials

    def _duel(
        self, name: str, requests: Iterable[TraceRequest], speed: float, systems: Sequence[SystemSettings]
    ) -> Duel:
        requests = list(requests)
        papers, ours = (self._serve(system, requests, speed) for system in systems)
        return Duel(load=name, speed=speed, seeds=1, papers=papers, ours=ours, worst=_ratio(ours, papers))

    def _generated(
        self, name: str, load: Families | Sessions, rate: float, speed: float, systems: Sequence[SystemSettings]
    ) -> Duel:
        block_tokens = self._setup.config.engine.block_tokens
        found = []
        arrivals = Arrivals(rate=rate * (self._cluster.prefill + self._cluster.decode))
        for seed in range(self._scope.first_seed, self._scope.first_seed + self._scope.seeds):
            made = generate(load, arrivals, requests=self._scope.requests, block_tokens=block_tokens, seed=seed)
            found.append(self._duel(name, made, speed, systems))
        return Duel(
            load=name,
            speed=speed,
            seeds=len(found),
            papers=sum(duel.papers for duel in found) / len(found),
            ours=sum(duel.ours for duel in found) / len(found),
            worst=min(duel.worst for duel in found),
        )

    def _serve(self, system: SystemSettings, requests: Sequence[TraceRequest], speed: float) -> float:
        jobs = make_jobs(_iterate(requests), block_tokens=self._setup.config.engine.block_tokens, speed=speed)
        ratio = summarise(self._setup.config, system, simulate(self._setup, system, jobs)).goodput_ratio
        self._progress(f"{system.policy}, {system.admission}, speed {speed:g}: {ratio:.1%}")
        return ratio

    def _plain(self, policy: str, admission: str) -> SystemSettings:
        return msgspec.structs.replace(self._cluster, policy=policy, admission=admission, workload="")

    def _system(self, trial: Trial) -> SystemSettings:
        return msgspec.structs.replace(self._plain(trial.policy, trial.admission), **trial.parameters)


def _best(trials: Sequence[Trial]) -> Trial:
    return max(trials, key=lambda trial: trial.goodput_ratio)


def _ratio(ours: float, papers: float) -> float:
    return ours / papers if papers else 1.0


def _iterate(requests: Sequence[TraceRequest]) -> Iterator[TraceRequest]:
    yield from requests
