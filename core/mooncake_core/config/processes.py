"""What a configuration describes, names and counts spelled out: members of the cluster, and the processes they run in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mooncake_core.config.schema import (
    ClusterConfig,
    GatewayConfig,
    InstanceConfig,
    MasterConfig,
    NodeConfig,
    StoreConfig,
)

ProcessRole = Literal["master", "gateway", "store", "prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One member of the cluster and its part of the configuration."""

    name: str
    process: str
    """Name of the process it runs in: its own, unless several share one."""
    entry: str
    """Name of its entry in the YAML; several processes share one with a count."""
    role: ProcessRole
    host: str
    section: MasterConfig | GatewayConfig | NodeConfig | InstanceConfig
    path: str
    """Where its entry stands in the YAML: master, store.0."""
    local_to: str = ""
    """For the local node of an instance: the instance's name."""


def processes(config: ClusterConfig) -> list[ProcessSpec]:
    """All processes of the cluster, the master first."""
    master, gateway = config.master, config.gateway
    return [
        _single("master", master),
        _single("gateway", gateway),
        *_stores(config.store),
        *_instances("prefill", config.prefill),
        *_instances("decode", config.decode),
    ]


def _single(role: ProcessRole, section: MasterConfig | GatewayConfig) -> ProcessSpec:
    name = section.name
    return ProcessSpec(name=name, process=name, entry=name, role=role, host=section.host, section=section, path=role)


def local_node_name(instance: ProcessSpec) -> str:
    """Name of an instance's local node; empty when it has none."""
    section = instance.section
    has_node = isinstance(section, InstanceConfig) and section.local_node is not None
    return f"{instance.name}-node" if has_node else ""


def ports_of(spec: ProcessSpec) -> list[tuple[str, int]]:
    """(where it stands in the YAML, port), the first one that of its server; 0 for free ones. The master's admin_port is not
    among them."""
    section = spec.section
    if isinstance(section, MasterConfig | GatewayConfig):
        return [(f"{spec.path}.port", section.port)]
    path = f"{spec.path}.local_node" if spec.local_to else spec.path
    return [(f"{path}.data_port", section.data_port), (f"{path}.metrics_port", section.metrics_port or 0)]


def _stores(entries: Sequence[StoreConfig]) -> Iterator[ProcessSpec]:
    for index, entry in enumerate(entries):
        for name in _numbered(entry.name, entry.count):
            yield ProcessSpec(
                name=name,
                process=name,
                entry=entry.name,
                role="store",
                host=entry.host,
                section=entry,
                path=f"store.{index}",
            )


def _instances(role: Literal["prefill", "decode"], entries: Sequence[InstanceConfig]) -> Iterator[ProcessSpec]:
    for index, entry in enumerate(entries):
        base = entry.name or role
        for number, name in enumerate(_numbered(base, entry.count)):
            process = name if entry.per_process == 1 else f"{base}-group-{number // entry.per_process}"
            instance = ProcessSpec(
                name=name,
                process=process,
                entry=base,
                role=role,
                host=entry.host,
                section=entry,
                path=f"{role}.{index}",
            )
            yield instance
            if entry.local_node is not None:
                yield ProcessSpec(
                    name=local_node_name(instance),
                    process=f"{process}-node",
                    entry=base,
                    role="store",
                    host=entry.host,
                    section=entry.local_node,
                    path=instance.path,
                    local_to=name,
                )


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}-{number}" for number in range(count)]
