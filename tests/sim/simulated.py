"""What the tests of the simulator build clusters of: round numbers, so that results can be worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mooncake_core.conductor.admission.contract import Admission
from mooncake_core.conductor.balance import Balance
from mooncake_core.conductor.conductor import Conductor, ConductorSettings
from mooncake_core.conductor.policies import KVCacheCentric
from mooncake_core.conductor.policies.contract import Policy, PolicySettings
from mooncake_core.sim.block_cache import BlockCache
from mooncake_core.sim.conducted import ConductedCluster, ConductedSettings
from mooncake_core.sim.job import Job
from mooncake_core.sim.members import Members
from mooncake_core.sim.pipeline import Pipeline
from mooncake_core.sim.shapes import HostShape, ModelShape
from mooncake_core.sim.simulation import Simulation
from mooncake_core.sim.timeline import Timeline
from mooncake_core.store.evictions import LRU
from mooncake_core.wire.messages.membership import CostHint

BLOCK_TOKENS = 10


@dataclass(frozen=True)
class RoundCosts:
    """10 ms per prompt token; a step takes 1 s, and 1 ms more per sequence and 0 per token of context."""

    token_s: float = 0.01
    step_base_s: float = 1.0
    sequence_s: float = 0.0
    context_s: float = 0.0

    def prefill_s(self, prompt_tokens: int, matched_tokens: int) -> float:
        return self.token_s * (prompt_tokens - matched_tokens)

    def step_s(self, batch: int, context_tokens: int) -> float:
        return self.step_base_s + self.sequence_s * batch + self.context_s * context_tokens

    def hint(self, shape: HostShape) -> CostHint:
        return CostHint(
            prefill_base_s=0.0,
            prefill_per_token_s=self.token_s,
            prefill_per_token2_s=0.0,
            step_base_s=self.step_base_s,
            step_per_sequence_s=self.sequence_s,
            step_per_context_token_s=self.context_s,
            fetch_bytes_per_s=shape.nic_bytes_per_s,
            load_bytes_per_s=shape.ssd_bytes_per_s,
        )


MODEL = ModelShape(name="model", num_layers=10, block_tokens=BLOCK_TOKENS, kv_bytes_per_token=100)


def job(number: int, arrived_at: float, prompt: int, output: int, blocks: Sequence[int] | None = None) -> Job:
    """A request; `blocks` stand for its full blocks, by default ones that no other has."""
    full = (prompt - 1) // BLOCK_TOKENS
    names = [1000 * (number + 1) + index for index in range(full)] if blocks is None else list(blocks)[:full]
    keys = [name.to_bytes(16, "big") for name in names]
    return Job(number=number, arrived_at=arrived_at, prompt_tokens=prompt, output_tokens=output, keys=keys)


def host(**changes: Any) -> HostShape:
    values: dict[str, Any] = {"hbm_blocks": 10_000, "dram_blocks": 10_000, "nic_bytes_per_s": 1e9, **changes}
    return HostShape(**values)


@dataclass
class Run:
    """A finished simulation."""

    cluster: ConductedCluster
    simulation: Simulation
    jobs: list[Job]


def conducted(
    jobs: Iterable[Job],
    *,
    prefill: int = 1,
    decode: int = 1,
    costs: RoundCosts | None = None,
    shape: HostShape | None = None,
    stages: int = 1,
    chunk_tokens: int = 10_000,
    policy: Policy | None = None,
    admission: Admission | None = None,
    balance: Balance | None = None,
    changes: Sequence[tuple[float, str, Sequence[Any]]] = (),
    samples_s: float = 0.0,
    reports_s: float = 0.0,
    **settings: Any,
) -> Run:
    """Runs jobs through a disaggregated cluster. `changes`: time, method of its members, arguments."""
    costs = costs or RoundCosts()
    shape = shape or host()
    timeline = Timeline()
    ordered = sorted(jobs, key=lambda one: (one.arrived_at, one.number))
    simulation = Simulation(timeline, iter(ordered), report_interval_s=reports_s, sample_interval_s=samples_s)
    tiers = [("dram", shape.dram_blocks), *([("ssd", shape.ssd_blocks)] if shape.ssd_blocks else [])]
    conductor = Conductor(
        ConductorSettings(), policy or KVCacheCentric(PolicySettings()), "tested", random.Random(0), admission, balance
    )
    cluster = ConductedCluster(
        timeline,
        conductor,
        MODEL,
        shape,
        ConductedSettings(**{"max_tokens": 100, **settings}),
        members=partial(
            Members,
            model=MODEL,
            host=shape,
            costs=costs,
            hint=costs.hint(shape),
            new_pipeline=lambda: Pipeline(costs, stages=stages, chunk_tokens=chunk_tokens),
            new_cache=lambda: BlockCache(tiers, LRU),
        ),
        ended=simulation.ended,
    )
    for index in range(prefill):
        cluster.members.join(f"prefill-{index}", "prefill")
    for index in range(decode):
        cluster.members.join(f"decode-{index}", "decode")
    for at, method, arguments in changes:
        timeline.at(at, lambda method=method, arguments=arguments: _change(cluster, method, arguments))
    simulation.run(cluster)
    return Run(cluster, simulation, ordered)


def _change(cluster: ConductedCluster, method: str, arguments: Sequence[Any]) -> None:
    if method == "fail":
        cluster.members.fail(arguments[0], with_node=bool(arguments[1:]))
    else:
        getattr(cluster.members, method)(*arguments)
