"""A live cluster's YAML as a simulation: its mock engines sleep what their options say, and so the simulated ones do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mooncake_core.conductor.cost import HintCosts, hint_of
from mooncake_core.config.schema import ClusterConfig, EngineConfig
from mooncake_core.errors import ConfigError
from mooncake_core.inference.mock import cost_of, kv_layout, parse_options
from mooncake_core.sim.settings import EngineSettings, SimulationConfig, SloSettings, SystemSettings
from mooncake_core.sim.shapes import HostShape, ModelShape
from mooncake_core.wire.messages.membership import CostHint

CLUSTER_KEYS: Final = frozenset({"cluster", "master", "gateway", "store", "prefill", "decode", "scheduler", "pool"})
"""By any of which a file is a cluster's."""
NEVER_S: Final = 1e9


def describe_cluster(
    cluster: ClusterConfig, path: str
) -> tuple[SimulationConfig, HintCosts, CostHint, ModelShape, HostShape]:
    """The parts of a Setup.

    Raises:
        ConfigError: it has engines whose times are not known, or parts that are not simulated.
    """
    problems = list(_problems(cluster, path))
    if problems:
        raise ConfigError("\n".join(problems), problems=problems)
    engine, node = cluster.prefill[0].engine, cluster.prefill[0].local_node
    real = cost_of(parse_options(engine.options))
    hint = hint_of(engine.cost) if engine.cost else real
    layout = kv_layout(cluster.block_tokens)
    model = ModelShape(
        name="mock",
        num_layers=layout.num_layers,
        block_tokens=cluster.block_tokens,
        kv_bytes_per_token=layout.token_bytes,
    )
    host = HostShape(
        hbm_blocks=max(1, engine.kv_memory // layout.block_bytes),
        dram_blocks=node.capacity // layout.block_bytes if node else 0,
        ssd_blocks=max(tier.capacity for tier in node.tiers) // layout.block_bytes if node and node.tiers else 0,
        nic_bytes_per_s=real.fetch_bytes_per_s,
        ssd_bytes_per_s=real.load_bytes_per_s,
    )
    return _config(cluster, engine), HintCosts(real), hint, model, host


def _config(cluster: ClusterConfig, engine: EngineConfig) -> SimulationConfig:
    scheduler = cluster.scheduler
    limits = (scheduler.ttft_slo, scheduler.tbt_slo)
    ttft, tbt = (NEVER_S if limit is None else limit for limit in limits)
    return SimulationConfig(
        seed=abs(scheduler.seed),
        report_interval=cluster.master.heartbeat_interval,
        slo=SloSettings(ttft=ttft, tbt=tbt),
        engine=EngineSettings(
            block_tokens=cluster.block_tokens, chunk_tokens=engine.chunk_tokens, eviction=cluster.pool.eviction
        ),
        systems=[
            SystemSettings(
                name=cluster.cluster,
                prefill=sum(entry.count for entry in cluster.prefill),
                decode=sum(entry.count for entry in cluster.decode),
                policy=scheduler.policy,
                balancing_threshold=scheduler.balancing_threshold,
                equal_within=scheduler.equal_within,
                spread_shared=scheduler.spread_shared,
                replicate=scheduler.replicate,
                admission=scheduler.admission,
                decode_time=scheduler.decode_time,
                headroom=scheduler.headroom,
                shed_weight=scheduler.shed_weight,
                fairness=scheduler.fairness,
                plan_roles=scheduler.plan_roles,
            )
        ],
    )


def _problems(cluster: ClusterConfig, path: str) -> Iterator[str]:
    entries = [("prefill", entry) for entry in cluster.prefill] + [("decode", entry) for entry in cluster.decode]
    for role, entry in entries:
        if entry.engine.kind != "mock":
            yield (
                f"{path}: {role}: expected engines of kind mock, whose times are known, got {entry.engine.kind}; "
                "to simulate others describe model and hardware as the files in configs/sim do"
            )
    if not cluster.prefill or not cluster.decode:
        yield f"{path}: expected prefill and decode instances, got {len(cluster.prefill)} and {len(cluster.decode)}"
    engines = {(entry.engine.kv_memory, repr(sorted(entry.engine.options.items()))) for _, entry in entries}
    if len(engines) > 1:
        yield f"{path}: expected all engines to have the same kv_memory and options, got {len(engines)} kinds"
    if cluster.store:
        yield f"{path}: store: nodes of their own are not simulated; give prefill instances a local_node"
