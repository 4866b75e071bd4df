"""Whether plugins load: those that the configuration names must, others may lack what they need."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Final

from mooncake_core import registry
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.doctor.contract import Finding, Subject, fail, ok, skip
from mooncake_core.doctor.places import instances_here, nodes_here
from mooncake_core.errors import MooncakeError

TAKES_SECONDS: Final = "torch"
"""An engine whose import takes seconds: loaded only where it is wanted."""


def check(subject: Subject) -> Iterator[Finding]:
    wanted = set(_wanted(subject.config)) if subject.config else set()
    for kind in registry.GROUPS:
        if kind != "check":  # the doctor loads those itself
            yield from _of_kind(kind, {name for of, name in wanted if of == kind})


def _of_kind(kind: str, wanted: Set[str]) -> Iterator[Finding]:
    loaded = []
    for name in sorted({entry.name for entry in registry.installed(kind)} | wanted):
        if name == TAKES_SECONDS and name not in wanted:
            continue
        try:
            registry.load(kind, name)
            loaded.append(name)
        except MooncakeError as error:
            if name in wanted:
                yield fail(
                    f"the configuration wants {kind} {name}: {error}", "install what is missing, or choose another"
                )
            else:
                yield skip(str(error))
    if loaded:
        yield ok(f"{kind}: {', '.join(loaded)}")


def _wanted(config: ClusterConfig) -> Iterator[tuple[str, str]]:
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
