"""Which of a configuration's addresses are this machine's."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from functools import cache

from mooncake_core.address import is_wildcard
from mooncake_core.config.schema import ClusterConfig, InstanceConfig, NodeConfig, TierConfig


@cache
def is_here(host: str) -> bool:
    """Whether a process of this machine can listen at that address.

    Raises:
        OSError: the name cannot be resolved.
    """
    if is_wildcard(host):
        return True
    family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return False
            raise
    return True


def _is_surely_here(host: str) -> bool:
    """As `is_here`; a name that cannot be resolved is for the check of ports to complain about, once."""
    try:
        return is_here(host)
    except OSError:
        return False


def nodes_here(config: ClusterConfig) -> Iterator[tuple[str, int, NodeConfig]]:
    """Setting, number, and section of the nodes that are for this machine."""
    for number, store in enumerate(config.store):
        if _is_surely_here(store.host):
            yield f"store[{number}]", store.count, store
    for setting, instance in instances_here(config):
        if instance.local_node:
            yield f"{setting}.local_node", instance.count, instance.local_node


def instances_here(config: ClusterConfig) -> Iterator[tuple[str, InstanceConfig]]:
    """Setting and section of the instances that are for this machine."""
    for role, instances in (("prefill", config.prefill), ("decode", config.decode)):
        for number, instance in enumerate(instances):
            if _is_surely_here(instance.host):
                yield f"{role}[{number}]", instance


def tiers_here(config: ClusterConfig, kind: str) -> Iterator[tuple[str, int, TierConfig]]:
    """Setting of the tier, number of nodes that have it, and its section."""
    for setting, count, node in nodes_here(config):
        for number, tier in enumerate(node.tiers):
            if tier.kind == kind:
                yield f"{setting}.tiers[{number}]", count, tier


def plugins_here(config: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Kind and name of each plugin that the configuration names for this machine."""
    yield "policy", config.scheduler.policy
    yield "admission", config.scheduler.admission
    yield "eviction", config.pool.eviction
    for name in config.transfer.transports:
        if name not in config.transfer.optional:
            yield "transport", name
    for _, instance in instances_here(config):
        yield "engine", instance.engine.kind
    for _, _, node in nodes_here(config):
        yield from (("tier", tier.kind) for tier in node.tiers)
