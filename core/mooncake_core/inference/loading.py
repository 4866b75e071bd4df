"""Makes the engine that a cluster's configuration names for an instance."""

from __future__ import annotations

import os

from mooncake_core import registry
from mooncake_core.conductor.cost import hint_of
from mooncake_core.config.schema import ClusterConfig, InstanceConfig
from mooncake_core.inference.contract import Engine, EngineSettings
from mooncake_core.inference.models import resolve_model


def load_engine(config: ClusterConfig, section: InstanceConfig) -> Engine:
    """Loads the model; takes seconds, or minutes.

    Raises:
        ModelNotFound: the configuration's model is not there.
        PluginUnknown: no such engine is installed.
        MooncakeError: as the engine says.
    """
    folder = resolve_model(config.model)  # before torch is imported for nothing
    engine_class = registry.load("engine", section.engine.kind)
    engine: Engine = engine_class(
        EngineSettings(
            model_path=str(folder),
            device=section.engine.device,
            dtype=section.engine.dtype,
            block_tokens=config.block_tokens,
            kv_memory_bytes=section.engine.kv_memory,
            threads=section.engine.threads or _shared_threads(config, section.host),
            cost=hint_of(section.engine.cost) if section.engine.cost else None,
            options=section.engine.options,
        )
    )
    return engine


def _shared_threads(config: ClusterConfig, host: str) -> int:
    """The host's cores divided among its instances, at least one each."""
    instances = sum(entry.count for entry in (*config.prefill, *config.decode) if entry.host == host)
    return max(1, len(os.sched_getaffinity(0)) // max(1, instances))
