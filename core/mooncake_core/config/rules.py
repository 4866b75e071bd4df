"""What types cannot say: names used twice, ports used twice, open addresses without a key, plugins that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from mooncake_core import registry
from mooncake_core.address import is_loopback
from mooncake_core.config.processes import ProcessSpec, processes
from mooncake_core.config.schema import (
    ClusterConfig,
    GatewayConfig,
    InstanceConfig,
    MasterConfig,
    NodeConfig,
)

Finding = tuple[str, str]
"""Path of the value, and what is wrong with it."""


def findings(config: ClusterConfig) -> Iterator[Finding]:
    """All that is wrong with a configuration whose types are right."""
    specs = processes(config)
    yield from _names(specs)
    yield from _ports(specs)
    yield from _open_addresses(config)
    yield from _plugins(config)
    yield from _shared_processes(config)
    yield from _tenants(config.gateway)
    if config.pool.low_watermark >= config.pool.high_watermark:
        yield "pool.low_watermark", f"expected less than high_watermark ({config.pool.high_watermark})"


def _names(specs: list[ProcessSpec]) -> Iterator[Finding]:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            yield _section(spec), f"expected each process to have a name of its own, got {spec.name} twice"
        seen.add(spec.name)


def _ports(specs: list[ProcessSpec]) -> Iterator[Finding]:
    taken: dict[tuple[str, int], str] = {}
    for spec in specs:
        port = _port(spec)
        if not port:
            continue
        owner = taken.setdefault((spec.host, port), spec.name)
        if owner != spec.name:
            yield _section(spec), f"expected ports to be used once per host, got {port} for {owner} and {spec.name}"


def _port(spec: ProcessSpec) -> int:
    section = spec.section
    return section.port if isinstance(section, MasterConfig | GatewayConfig) else section.data_port


def _open_addresses(config: ClusterConfig) -> Iterator[Finding]:
    if config.auth is not None or config.insecure:
        return
    hosts = [("master", config.master.host), ("gateway", config.gateway.host)]
    hosts += [(f"store.{index}", entry.host) for index, entry in enumerate(config.store)]
    for role, instances in (("prefill", config.prefill), ("decode", config.decode)):
        hosts += [(f"{role}.{index}", entry.host) for index, entry in enumerate(instances)]
    for path, host in hosts:
        if not is_loopback(host):
            yield (
                f"{path}.host",
                f"expected a loopback address, got {host}: others can reach it, so give auth.key_file "
                "(`mooncake auth init` writes a key), or say insecure: true",
            )


def _shared_processes(config: ClusterConfig) -> Iterator[Finding]:
    for role, entries in (("prefill", config.prefill), ("decode", config.decode)):
        for index, entry in enumerate(entries):
            if entry.per_process > 1 and (entry.engine.kind != "mock" or entry.data_port):
                yield (
                    f"{role}.{index}.per_process",
                    f"expected 1 for engine {entry.engine.kind} (only mock instances on free data ports share a process), "
                    f"got {entry.per_process}",
                )


def _tenants(gateway: GatewayConfig) -> Iterator[Finding]:
    for tenant, keys in gateway.api_keys.items():
        given = [keys] if isinstance(keys, str) else keys
        if not given or not all(given):  # a variable that is set to nothing
            yield f"gateway.api_keys.{tenant}", "expected a key, got an empty one"
    for tenant in gateway.tenants:
        if tenant not in gateway.api_keys and not gateway.api_keys_file:
            yield f"gateway.tenants.{tenant}", "expected a tenant with a key in gateway.api_keys or api_keys_file"


def _plugins(config: ClusterConfig) -> Iterator[Finding]:
    yield from _plugin("policy", "scheduler.policy", config.scheduler.policy)
    yield from _plugin("eviction", "pool.eviction", config.pool.eviction)
    for index, name in enumerate(config.transfer.transports):
        yield from _plugin("transport", f"transfer.transports.{index}", name)
    for role, entries in (("prefill", config.prefill), ("decode", config.decode)):
        for index, entry in enumerate(entries):
            yield from _plugin("engine", f"{role}.{index}.engine.kind", entry.engine.kind)


def _plugin(kind: str, path: str, name: str) -> Iterator[Finding]:
    known = [entry.name for entry in registry.installed(kind)]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        yield path, f"expected an installed {kind} ({', '.join(known)}), got {name}{hint}"


def _section(spec: ProcessSpec) -> str:
    return (
        "store" if isinstance(spec.section, NodeConfig) and not isinstance(spec.section, InstanceConfig) else spec.role
    )
