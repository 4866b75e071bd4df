"""What types cannot say: names used twice, ports used twice, open addresses without a key, plugins that do not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from mooncake_core import busy_poll, registry
from mooncake_core.address import is_loopback, is_wildcard
from mooncake_core.config.processes import ProcessSpec, ports_of, processes
from mooncake_core.config.schema import (
    ClusterConfig,
    GatewayConfig,
    InstanceConfig,
    MasterConfig,
    NodeConfig,
    SchedulerConfig,
)

DEVICE: Final = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a value whose type is right."""

    path: str
    message: str
    because: tuple[str, ...] = ()
    """Paths of other values it follows from: it says nothing where one of them could not be read."""


def findings(config: ClusterConfig) -> Iterator[Finding]:
    """All that is wrong with a configuration, except for its types."""
    specs = processes(config)
    yield from _names(specs)
    yield from _ports(specs)
    yield from _admin_port(config.master, specs)
    yield from _hosts(config)
    yield from _networks(config)
    yield from _weights(config)
    yield from _plugins(config)
    yield from _capacities(config)
    yield from _shared_processes(config)
    yield from _tenants(config.gateway, config.scheduler)
    yield from _busy_poll(config.transfer.busy_poll)
    scheduler = config.scheduler
    if scheduler.plan_roles and (scheduler.ttft_slo is None or scheduler.tbt_slo is None):
        message = "expected both objectives, by which loads are known: scheduler.ttft_slo and scheduler.tbt_slo"
        yield Finding("scheduler.plan_roles", message)
    if config.pool.low_watermark >= config.pool.high_watermark:
        message = f"expected less than high_watermark ({config.pool.high_watermark})"
        yield Finding("pool.low_watermark", message, because=("pool.high_watermark",))


def _names(specs: list[ProcessSpec]) -> Iterator[Finding]:
    first: dict[str, ProcessSpec] = {}
    for spec in specs:
        other = first.setdefault(spec.name, spec)
        if other is not spec:
            message = f"expected each process to have a name of its own, got {spec.name} twice"
            named = (f"{entry.path}.{key}" for entry in (spec, other) for key in ("name", "count", "local_node"))
            yield Finding(spec.path, message, because=tuple(named))


def _ports(specs: list[ProcessSpec]) -> Iterator[Finding]:
    first: dict[tuple[str, int], tuple[str, ProcessSpec]] = {}
    for spec in specs:
        for path, port in ports_of(spec):
            if not port:
                continue
            other_path, other = first.setdefault((spec.host, port), (path, spec))
            if (other_path, other) != (path, spec):
                names = other.name if other is spec else f"{other.name} and {spec.name}"
                yield Finding(
                    path,
                    f"expected ports to be used once per host, got {port} for {names}",
                    because=(other_path, f"{spec.path}.host", f"{other.path}.host"),
                )


def _admin_port(master: MasterConfig, specs: list[ProcessSpec]) -> Iterator[Finding]:
    for spec in specs:
        for path, port in ports_of(spec):
            if master.admin_port and (spec.host, port) == (master.host, master.admin_port):
                yield Finding(
                    "master.admin_port",
                    f"expected ports to be used once per host, got {master.admin_port} for it and for {spec.name}",
                    because=(path, "master.host", f"{spec.path}.host"),
                )


def _hosts(config: ClusterConfig) -> Iterator[Finding]:
    hosts = {"master": config.master.host, "gateway": config.gateway.host}
    hosts |= {f"store.{index}": entry.host for index, entry in enumerate(config.store)}
    hosts |= {f"{role}.{index}": entry.host for role, index, entry in _instances(config)}
    for section, host in hosts.items():
        if is_wildcard(host) and section != "gateway":  # the only one that need not be found by the others
            yield Finding(
                f"{section}.host",
                f"expected the address at which the others reach it, got {host}, which is every address of a host and "
                "none to be reached at: give this host's own address or name (only gateway.host may be a wildcard)",
            )
        if not is_loopback(host) and config.auth is None and not config.insecure:
            yield Finding(
                f"{section}.host",
                f"expected a loopback address, got {host}: others can reach it, so give auth.key_file "
                "(`mooncake auth init` writes a key), or say insecure: true",
                because=("auth", "insecure"),
            )


def _networks(config: ClusterConfig) -> Iterator[Finding]:
    for index, text in enumerate(config.transfer.networks):
        path = f"transfer.networks.{index}"
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            yield Finding(path, f"expected a network like 10.1.0.0/16 or fd00:1::/64, got {text!r}")
            continue
        if not network.is_loopback and config.auth is None and not config.insecure:
            yield Finding(
                path,
                f"expected a key where others can reach memory over {text}: give auth.key_file (`mooncake auth init` writes "
                "a key), or say insecure: true",
                because=("auth", "insecure"),
            )


def _weights(config: ClusterConfig) -> Iterator[Finding]:
    for name in config.transfer.weights:
        if not DEVICE.fullmatch(name):
            try:
                ip_network(name, strict=False)
            except ValueError:
                message = (
                    f"expected a network like 10.1.0.0/16, or the name of an RDMA device like mlx5_0, got {name!r}"
                )
                yield Finding(f"transfer.weights.{name}", message)


def _busy_poll(most_s: float) -> Iterator[Finding]:
    try:
        busy_poll.checked(most_s)
    except ValueError as error:
        yield Finding("transfer.busy_poll", str(error))


def _shared_processes(config: ClusterConfig) -> Iterator[Finding]:
    for role, index, entry in _instances(config):
        if entry.per_process > 1 and (entry.engine.kind != "mock" or entry.data_port):
            yield Finding(
                f"{role}.{index}.per_process",
                f"expected 1 for engine {entry.engine.kind} (only mock instances on free data ports share a process), "
                f"got {entry.per_process}",
                because=(f"{role}.{index}.engine.kind", f"{role}.{index}.data_port"),
            )


def _tenants(gateway: GatewayConfig, scheduler: SchedulerConfig) -> Iterator[Finding]:
    for tenant, keys in gateway.api_keys.items():
        path = f"gateway.api_keys.{tenant}"
        given = {path: keys} if isinstance(keys, str) else {f"{path}.{index}": key for index, key in enumerate(keys)}
        for at, key in (given or {path: ""}).items():
            if not key:  # a variable that is set to nothing
                yield Finding(at, "expected a key, got an empty one")
    weights = scheduler.fairness.weights if scheduler.fairness else {}
    for path, tenant in (
        *((f"gateway.tenants.{tenant}", tenant) for tenant in gateway.tenants),
        *((f"scheduler.fairness.weights.{tenant}", tenant) for tenant in weights),
    ):
        if tenant not in gateway.api_keys and not gateway.api_keys_file:
            yield Finding(
                path,
                "expected a tenant with a key in gateway.api_keys or api_keys_file",
                because=(f"gateway.api_keys.{tenant}", "gateway.api_keys_file"),
            )


def _plugins(config: ClusterConfig) -> Iterator[Finding]:
    yield from _plugin("policy", "scheduler.policy", config.scheduler.policy)
    yield from _plugin("admission", "scheduler.admission", config.scheduler.admission)
    yield from _plugin("eviction", "pool.eviction", config.pool.eviction)
    for index, name in enumerate(config.transfer.transports):
        yield from _plugin("transport", f"transfer.transports.{index}", name)
    for index, name in enumerate(config.transfer.optional):
        if name not in config.transfer.transports:
            listed = ", ".join(config.transfer.transports)
            because = ("transfer.transports",)
            yield Finding(
                f"transfer.optional.{index}", f"expected one of the transports ({listed}), got {name}", because
            )
    for role, index, entry in _instances(config):
        yield from _plugin("engine", f"{role}.{index}.engine.kind", entry.engine.kind)
    for path, node in _nodes(config):
        for index, tier in enumerate(node.tiers):
            yield from _plugin("tier", f"{path}.tiers.{index}.kind", tier.kind)
            if not tier.path:
                yield Finding(f"{path}.tiers.{index}.path", "expected a folder or a URL, got nothing")
            if tier.folder == "first-free" and "://" in tier.path and not tier.path.startswith("file://"):
                found = "first-free, which needs a folder that can be locked: a path on a disk"
                yield Finding(f"{path}.tiers.{index}.folder", f"expected node for {tier.path}, got {found}")


def _capacities(config: ClusterConfig) -> Iterator[Finding]:
    for path, node in _nodes(config):
        if not node.capacity:
            yield Finding(f"{path}.capacity", "expected room for objects, got none")


def _plugin(kind: str, path: str, name: str) -> Iterator[Finding]:
    known = [entry.name for entry in registry.installed(kind)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        yield Finding(path, f"expected an installed {kind} ({', '.join(known)}), got {name}{hint}")


def _instances(config: ClusterConfig) -> Iterator[tuple[str, int, InstanceConfig]]:
    """Role, number and section of each."""
    for role, entries in (("prefill", config.prefill), ("decode", config.decode)):
        for index, entry in enumerate(entries):
            yield role, index, entry


def _nodes(config: ClusterConfig) -> Iterator[tuple[str, NodeConfig]]:
    """Path and section of each."""
    for index, entry in enumerate(config.store):
        yield f"store.{index}", entry
    for role, index, instance in _instances(config):
        if instance.local_node is not None:
            yield f"{role}.{index}.local_node", instance.local_node
