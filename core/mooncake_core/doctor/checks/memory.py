"""Whether this machine has the memory that the configuration's processes take."""

from __future__ import annotations

from collections.abc import Iterator

from mooncake_core.config.schema import ClusterConfig
from mooncake_core.doctor.contract import Finding, Subject, fail, ok, skip
from mooncake_core.doctor.places import instances_here, nodes_here
from mooncake_core.store.memory_limit import available_memory_bytes
from mooncake_core.units import format_size


def check(subject: Subject) -> Iterator[Finding]:
    available_bytes = available_memory_bytes(subject.root)
    if subject.config is None:
        yield skip(f"{format_size(available_bytes)} can be had; give -c FILE to compare it with a configuration")
        return
    wanted_bytes = sum(_taken(subject.config))
    said = f"nodes and engines on this host take {format_size(wanted_bytes)}, {format_size(available_bytes)} can be had"
    if wanted_bytes > available_bytes:
        yield fail(
            said, "lower `capacity` of the nodes or `kv_memory` of the engines, or raise the container's memory limit"
        )
    else:
        yield ok(said)


def _taken(config: ClusterConfig) -> Iterator[int]:
    """Bytes of each segment and each engine's KV, of those that are for this machine."""
    for _, count, node in nodes_here(config):
        yield count * node.capacity
    for _, instance in instances_here(config):
        yield instance.count * instance.engine.kv_memory
