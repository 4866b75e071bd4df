"""What a simulation has shown, in the numbers that the papers report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Struct, UnsetType

from mooncake_core.sim.series import Sample
from mooncake_core.sim.settings import SimulationConfig, SystemSettings
from mooncake_core.sim.simulation import Simulation


class Spread(Struct, frozen=True, kw_only=True):
    """Of the requests that came so far; seconds. Quantiles by nearest rank."""

    mean: float
    p50: float
    p90: float
    p99: float


class HitRatio(Struct, frozen=True, kw_only=True):
    """Of the prompts of completed requests: what was not computed."""

    blocks: float
    tokens: float
    loaded_tokens: float | UnsetType = UNSET
    """Part of `tokens` that had to be loaded from below DRAM. Only where there is any."""


class Threshold(Struct, frozen=True, kw_only=True):
    """Goodput for one limit of the time between tokens."""

    tbt_s: float
    goodput: int
    goodput_ratio: float


class Swing(Struct, frozen=True, kw_only=True):
    """A pool's load over its objective, while requests came: technical report, section 7.3."""

    mean: float
    deviation: float


class TenantSummary(Struct, frozen=True, kw_only=True):
    """What one of several tenants got."""

    requests: int
    goodput: int
    goodput_ratio: float
    ttft_s: Spread | None


class SystemSummary(Struct, frozen=True, kw_only=True):
    """One system's part."""

    name: str
    requests: int
    completed: int
    goodput: int
    """Requests that met both objectives (FAST'25, section 5.1)."""
    goodput_ratio: float
    rejected: dict[str, int]
    """By stage: at arrival, or at decode when the prefill was done."""
    rejected_for: dict[str, int]
    """By stage and cause, such as "decode: tbt"."""
    unavailable: int
    tenants: dict[str, TenantSummary]
    """Where there are several."""
    ttft_s: Spread | None
    tbt_s: Spread | None
    """A request's is the mean of the slowest tenth of its gaps."""
    mean_gap_s: Spread | None
    longest_gap_s: Spread | None
    hit_ratio: HitRatio
    prefill_gpu_s: float
    """Mean over completed requests."""
    ttft_error_s: Spread | None
    """How far the Conductor's prediction was off."""
    span_s: float
    """Until the last request had ended."""
    utilisation: dict[str, float]
    """Share of the span that instances computed, by pool and instance."""
    thresholds: list[Threshold]
    swings: dict[str, Swing]
    """By pool."""
    samples: list[Sample]


def summarise(config: SimulationConfig, system: SystemSettings, simulation: Simulation) -> SystemSummary:
    """The numbers of a finished simulation."""
    records = simulation.records
    completed = records.where("outcome", "completed")
    rejected = records.where("outcome", "rejected")
    ttft, tbt = records.column("ttft_s"), records.column("tbt_s")
    in_time = completed & (ttft <= config.slo.ttft)
    served_well = in_time & (tbt <= config.slo.tbt)
    good = int(served_well.sum())
    requests = len(records)
    expected = records.column("expected_ttft_s")
    many = completed & (records.column("output_tokens") > 1)
    return SystemSummary(
        name=system.name,
        requests=requests,
        completed=int(completed.sum()),
        goodput=good,
        goodput_ratio=_share(good, requests),
        rejected={stage: int((rejected & records.where("stage", stage)).sum()) for stage in ("arrival", "decode")},
        rejected_for=_causes(simulation),
        unavailable=int(records.where("outcome", "unavailable").sum()),
        tenants=_tenants(simulation, served_well, completed),
        ttft_s=_spread(ttft[completed]),
        tbt_s=_spread(tbt[many]),
        mean_gap_s=_spread(records.column("tbt_mean_s")[many]),
        longest_gap_s=_spread(records.column("tbt_max_s")[many]),
        hit_ratio=_hits(simulation, completed, config.engine.block_tokens),
        prefill_gpu_s=float(records.column("prefill_s")[completed].mean()) if completed.any() else 0.0,
        ttft_error_s=_spread(np.abs(ttft - expected)[completed]) if system.kind == "disaggregated" else None,
        span_s=simulation.ended_at,
        utilisation={name: _share(busy, simulation.ended_at) for name, busy in sorted(simulation.busy_s.items())},
        thresholds=_thresholds(config.slo.thresholds, tbt[in_time], requests),
        swings=_swings(simulation),
        samples=simulation.samples,
    )


def _tenants(
    simulation: Simulation, served_well: npt.NDArray[np.bool_], completed: npt.NDArray[np.bool_]
) -> dict[str, TenantSummary]:
    records = simulation.records
    names = sorted(set(records.texts["tenant"]))
    found = {}
    for name in names if len(names) > 1 else []:
        rows = records.where("tenant", name)
        requests, goodput = int(rows.sum()), int((rows & served_well).sum())
        found[name] = TenantSummary(
            requests=requests,
            goodput=goodput,
            goodput_ratio=_share(goodput, requests),
            ttft_s=_spread(records.column("ttft_s")[rows & completed]),
        )
    return found


def _causes(simulation: Simulation) -> dict[str, int]:
    texts = simulation.records.texts
    rejected = Counter(
        f"{stage}: {cause}"
        for outcome, stage, cause in zip(texts["outcome"], texts["stage"], texts["cause"], strict=True)
        if outcome == "rejected"
    )
    return dict(sorted(rejected.items()))


def _swings(simulation: Simulation) -> dict[str, Swing]:
    last = simulation.records.column("arrived_at").max(initial=0.0)
    samples = [sample for sample in simulation.samples if sample.at_s <= last]
    if not samples:
        return {}
    loads = {
        "prefill": np.array([sample.prefill_load for sample in samples]),
        "decode": np.array([sample.decode_load for sample in samples]),
    }
    return {pool: Swing(mean=float(load.mean()), deviation=float(load.std())) for pool, load in loads.items()}


def _thresholds(limits: Sequence[float], tbt_in_time: npt.NDArray[np.float64], requests: int) -> list[Threshold]:
    found = []
    for limit in limits:
        good = int((tbt_in_time <= limit).sum())
        found.append(Threshold(tbt_s=limit, goodput=good, goodput_ratio=_share(good, requests)))
    return found


def _hits(simulation: Simulation, completed: npt.NDArray[np.bool_], block_tokens: int) -> HitRatio:
    prompts = simulation.records.column("prompt_tokens")[completed]
    cached = simulation.records.column("cached_tokens")[completed]
    loaded = simulation.records.column("loaded_tokens")[completed]
    blocks = np.ceil(prompts / block_tokens).sum()
    return HitRatio(
        blocks=_share(float((cached // block_tokens).sum()), float(blocks)),
        tokens=_share(float(cached.sum()), float(prompts.sum())),
        loaded_tokens=_share(float(loaded.sum()), float(prompts.sum())) or UNSET,
    )


def _spread(values: npt.NDArray[np.float64]) -> Spread | None:
    if not len(values):
        return None
    ordered = np.sort(values)
    p50, p90, p99 = (float(ordered[max(0, -(-len(ordered) * share // 100) - 1)]) for share in (50, 90, 99))
    return Spread(mean=float(ordered.mean()), p50=p50, p90=p90, p99=p99)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
