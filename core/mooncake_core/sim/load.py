"""Loads a simulation's YAML: every problem at once, with its place, and the arithmetic of what cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mooncake_core import registry
from mooncake_core.conductor.hardware import ELEMENT_BYTES, load_hardware
from mooncake_core.conductor.model_shape import load_model
from mooncake_core.conductor.roofline import Efficiency, Roofline
from mooncake_core.config.build import INVALID, Builder
from mooncake_core.config.load import load_config
from mooncake_core.config.rules import Finding
from mooncake_core.config.source import Place, Problem, Source, Value
from mooncake_core.errors import ConfigError, ModelTooLarge, PluginUnknown
from mooncake_core.sim.mock_cluster import CLUSTER_KEYS, describe_cluster
from mooncake_core.sim.settings import SimulationConfig, SystemSettings
from mooncake_core.sim.shapes import Costs, HostShape, ModelShape
from mooncake_core.wire.messages.membership import CostHint


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated: how, on what, and how long things take there."""

    config: SimulationConfig
    costs: Costs
    hint: CostHint
    """What instances say of their costs when they join."""
    model: ModelShape
    host: HostShape


def load_simulation(path: Path, environ: Mapping[str, str] | None = None) -> Setup:
    """The configuration in a file, with the descriptions of model and hardware that it names. A cluster's file is taken too,
    where all its engines are mock ones: their options say how long they take.

    Raises:
        ConfigError: `problems` has a line for everything that is wrong.
        ModelTooLarge: the model leaves no room for KV; the message has the arithmetic.
    """
    source = Source(environ or {})
    root = source.read(_text(path), str(path))
    if isinstance(root.content, dict) and not CLUSTER_KEYS.isdisjoint(root.content):
        cluster = load_config(path, environ=environ).config
        return Setup(*describe_cluster(cluster, str(path)))
    _add_constants(source, root, path)
    builder = Builder()
    config = builder.build(root, SimulationConfig)
    problems = [*source.problems, *builder.problems]
    if config is not INVALID and not problems:
        problems = [_located(builder, root, finding) for finding in findings(config)]
    if problems:
        raise ConfigError("\n".join(map(str, problems)), problems=[str(problem) for problem in problems])
    return describe(config, path.parent)


def describe(config: SimulationConfig, folder: Path) -> Setup:
    """With the hardware and the model that the configuration names, from this folder.

    Raises:
        ConfigError: the descriptions are broken.
        ModelTooLarge: the model leaves no room for KV; the message has the arithmetic.
    """
    model, hardware = load_model(folder / config.model), load_hardware(folder / config.hardware)
    given = config.efficiency
    efficiency = Efficiency(
        prefill=given.prefill,
        decode=given.decode,
        memory=given.memory,
        network=given.network,
        layer_overhead_s=given.layer_overhead,
        memory_reserve=given.memory_reserve,
    )
    roofline = Roofline(model, hardware, efficiency)
    held, block = roofline.kv_capacity_tokens, config.engine.block_tokens
    if held < block:
        raise ModelTooLarge(f"{model.name} leaves room for {held} tokens of KV on {hardware.name}; a block has {block}")
    shape = ModelShape(
        name=model.name,
        num_layers=model.layers,
        block_tokens=block,
        kv_bytes_per_token=model.kv_bytes_per_token,
        activation_bytes_per_token=model.hidden * ELEMENT_BYTES[model.dtype],
    )
    host = HostShape(
        hbm_blocks=roofline.kv_memory_bytes // shape.block_bytes,
        dram_blocks=hardware.dram // shape.block_bytes,
        ssd_blocks=hardware.disk // shape.block_bytes if config.engine.disk else 0,
        nic_bytes_per_s=hardware.nic_bytes_per_s * efficiency.network,
        device_bytes_per_s=hardware.host_to_device_bytes_per_s or math.inf,
        ssd_bytes_per_s=hardware.disk_bytes_per_s or math.inf,
    )
    return Setup(config, roofline, roofline.hint(), shape, host)


def findings(config: SimulationConfig) -> Iterator[Finding]:
    """What types cannot say."""
    for name in ("model", "hardware"):
        if not getattr(config, name):
            yield Finding(
                name, f"expected a file that describes the {name} (configs/models, configs/hardware), got none"
            )
    yield from _plugin("eviction", config.engine.eviction, "engine.eviction")
    if not config.systems:
        yield Finding("systems", "expected at least one system, got none")
    seen: set[str] = set()
    for index, system in enumerate(config.systems):
        if system.name in seen:
            yield Finding(f"systems.{index}.name", f"expected each system to have a name of its own, got {system.name}")
        seen.add(system.name)
        yield from _system(system, f"systems.{index}")
        if system.workload and system.workload not in {workload.name for workload in config.workloads}:
            known = ", ".join(workload.name for workload in config.workloads) or "none"
            message = f"expected one of the file's workloads ({known}), got {system.workload}"
            yield Finding(f"systems.{index}.workload", message)


def _system(system: SystemSettings, path: str) -> Iterator[Finding]:
    disaggregated = system.kind == "disaggregated"
    for pool in ("prefill", "decode") if disaggregated else ("instances",):
        if not getattr(system, pool):
            yield Finding(f"{path}.{pool}", f"expected 1 or more instances, got 0: {system.name} could serve nothing")
    if disaggregated:
        yield from _plugin("policy", system.policy, f"{path}.policy")
        yield from _plugin("admission", system.admission, f"{path}.admission")
    for index, change in enumerate(system.changes):
        if not change.instance:
            yield Finding(f"{path}.changes.{index}.instance", "expected the name of an instance, such as prefill-0")
        elif not disaggregated and change.change not in ("fail", "join"):
            message = f"expected fail or join for a coupled system, got {change.change}"
            yield Finding(f"{path}.changes.{index}.change", message)


def _plugin(kind: str, name: str, path: str) -> Iterator[Finding]:
    try:
        registry.load(kind, name)
    except PluginUnknown as error:
        yield Finding(path, str(error))


def _add_constants(source: Source, root: Value, path: Path) -> None:
    """Sections of the file of constants, where the file itself has none."""
    named = root.content.get("constants") if isinstance(root.content, dict) else None
    if named is None or not isinstance(named.content, str) or not named.content:
        return
    constants = path.parent / named.content
    try:
        tree = source.read(_text(constants), str(constants))
    except ConfigError as error:
        source.problems.append(Problem(named.place, "constants", str(error)))
        return
    if isinstance(tree.content, dict):
        root.content = {**tree.content, **root.content}


def _located(builder: Builder, root: Value, finding: Finding) -> Problem:
    at = next((path for path in (finding.path, *finding.because) if path in builder.origins), finding.path)
    while at and at not in builder.origins:
        at = at.rpartition(".")[0]
    value = builder.origins.get(at, root)
    return Problem(value.place if at else Place(value.place.name), finding.path, finding.message)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
