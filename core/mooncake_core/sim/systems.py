"""Builds the clusters that a simulation's YAML describes, and runs a trace through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from mooncake_core import registry
from mooncake_core.conductor.conductor import Conductor
from mooncake_core.conductor.scheduler import SchedulerOptions, make_conductor
from mooncake_core.sim.block_cache import BlockCache
from mooncake_core.sim.conducted import ConductedCluster, ConductedSettings
from mooncake_core.sim.coupled import CoupledInstance, CoupledSettings
from mooncake_core.sim.coupled_cluster import CoupledCluster
from mooncake_core.sim.job import Job
from mooncake_core.sim.kv_memory import KVMemory
from mooncake_core.sim.load import Setup
from mooncake_core.sim.members import Members
from mooncake_core.sim.pipeline import Pipeline
from mooncake_core.sim.records import Records
from mooncake_core.sim.settings import ChangeSettings, SimulationConfig, SystemSettings
from mooncake_core.sim.simulation import Simulation
from mooncake_core.sim.timeline import Timeline


def simulate(
    setup: Setup,
    system: SystemSettings,
    jobs: Iterator[Job],
    progress: Callable[[Records], None] = lambda records: None,
) -> Simulation:
    """Serves jobs with one system; they are used up. `progress` hears of each request that has ended."""
    timeline, config = Timeline(), setup.config
    simulation = Simulation(
        timeline,
        jobs,
        report_interval_s=config.report_interval,
        sample_interval_s=config.sample_interval,
        progress=progress,
    )
    if system.kind == "disaggregated":
        conducted = _conducted(setup, system, simulation)
        for change in system.changes:
            timeline.at(change.at, _change_member, conducted.members, change)
        simulation.run(conducted)
    else:
        coupled = _coupled(setup, system, simulation)
        for change in system.changes:
            act = coupled.fail if change.change == "fail" else coupled.join
            timeline.at(change.at, act, change.instance)
        simulation.run(coupled)
    return simulation


def _conducted(setup: Setup, system: SystemSettings, simulation: Simulation) -> ConductedCluster:
    config, costs, host = setup.config, setup.costs, setup.host
    engine = config.engine
    new_policy = registry.load("eviction", engine.eviction)
    hop_s = engine.chunk_tokens * setup.model.activation_bytes_per_token / host.nic_bytes_per_s
    tiers = [("dram", host.dram_blocks), *([("ssd", host.ssd_blocks)] if host.ssd_blocks else [])]
    cluster = ConductedCluster(
        simulation.timeline,
        _conductor(config, system),
        setup.model,
        host,
        ConductedSettings(
            layerwise=system.layerwise,
            replicate=system.replicate,
            max_tokens=engine.max_tokens,
            ttft_slo_s=config.slo.ttft,
            tbt_slo_s=config.slo.tbt,
        ),
        members=partial(
            Members,
            model=setup.model,
            host=host,
            costs=costs,
            hint=setup.hint,
            new_pipeline=lambda: Pipeline(costs, stages=system.stages, chunk_tokens=engine.chunk_tokens, hop_s=hop_s),
            new_cache=lambda: BlockCache(tiers, new_policy),
        ),
        ended=simulation.ended,
    )
    for index in range(system.prefill):
        cluster.members.join(f"prefill-{index}", "prefill")
    for index in range(system.decode):
        cluster.members.join(f"decode-{index}", "decode")
    return cluster


def _conductor(config: SimulationConfig, system: SystemSettings) -> Conductor:
    return make_conductor(
        SchedulerOptions(
            policy=system.policy,
            equal_within=system.equal_within,
            spread_shared=system.spread_shared,
            replicate=False,  # a simulated node keeps what its instance fetches, which takes no copy
            admission=system.admission,
            balancing_threshold=system.balancing_threshold,
            ttft_slo_s=config.slo.ttft,
            tbt_slo_s=config.slo.tbt,
            decode_time_s=system.decode_time,
            headroom=system.headroom,
            shed_weight=system.shed_weight,
            plan_roles=system.plan_roles,
            fairness=system.fairness,
            seed=config.seed,
        )
    )


def _change_member(members: Members, change: ChangeSettings) -> None:
    name = change.instance
    match change.change:
        case "fail" | "fail-host":
            members.fail(name, with_node=change.change == "fail-host")
        case "join":
            members.come_back(name)
        case "to-prefill":
            members.switch(name, "prefill")
        case "to-decode":
            members.switch(name, "decode")


def _coupled(setup: Setup, system: SystemSettings, simulation: Simulation) -> CoupledCluster:
    config, costs, host = setup.config, setup.costs, setup.host
    engine = config.engine
    new_policy = registry.load("eviction", engine.eviction) if system.prefix_caching else None
    settings = CoupledSettings(
        max_batch_tokens=engine.mixed_batch_tokens if system.chunked_prefill else engine.batch_tokens,
        max_sequences=engine.max_sequences,
        chunked=system.chunked_prefill,
    )

    def new_instance(name: str, ended: Callable[[Job], None]) -> CoupledInstance:
        memory = KVMemory(host.hbm_blocks, engine.block_tokens, new_policy)
        return CoupledInstance(
            name, simulation.timeline, costs, memory, settings, block_tokens=engine.block_tokens, ended=ended
        )

    cluster = CoupledCluster(
        simulation.timeline,
        system.router,
        np.random.default_rng(config.seed),
        new_instance=new_instance,
        slo_s=(config.slo.ttft, config.slo.tbt),
        ended=simulation.ended,
    )
    for index in range(system.instances):
        cluster.join(f"instance-{index}")
    return cluster
