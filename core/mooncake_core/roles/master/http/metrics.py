"""The master's figures for Prometheus, read when they are asked for. Each has one definition, that of the pool's report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mooncake_core.roles.master.http.state import MasterState
from mooncake_core.wire.messages.inspection import CacheReport
from mooncake_core.wire.messages.objects import TenantUsage
from mooncake_core.wire.messages.usage import NodeUsage

POOL_GAUGES: Final = (
    ("mooncake_pool_objects", "Objects that can be read", "num_objects"),
    ("mooncake_pool_objects_being_written", "Objects granted space and not committed", "num_writing"),
    ("mooncake_master_resident_bytes", "Resident memory of the master's process", "master_bytes"),
    (
        "mooncake_master_bytes_per_object",
        "Of it, what came per object; 0 below 1,000 objects",
        "master_bytes_per_object",
    ),
)
POOL_COUNTERS: Final = (
    ("mooncake_pool_puts", "Objects committed", "puts"),
    ("mooncake_pool_put_bytes", "Bytes of the objects committed", "put_bytes"),
    ("mooncake_pool_puts_skipped", "Objects not put because they were there or being written", "skipped_puts"),
    ("mooncake_pool_puts_refused", "Objects not put for want of space", "refused_puts"),
    ("mooncake_pool_puts_refused_by_quota", "Objects not put because of a tenant's quota", "refused_by_quota"),
    ("mooncake_pool_hits", "Keys that reads found", "hits"),
    ("mooncake_pool_hit_bytes", "Bytes of the objects that reads found", "hit_bytes"),
    ("mooncake_pool_misses", "Keys that reads did not find", "misses"),
    ("mooncake_pool_evictions", "Replicas evicted", "evicted"),
    ("mooncake_pool_evicted_bytes", "Bytes of the replicas evicted", "evicted_bytes"),
    ("mooncake_pool_demotions", "Objects that lost their place in DRAM and are in a tier", "demoted"),
    ("mooncake_pool_eviction_rounds", "Rounds of eviction begun", "eviction_rounds"),
    ("mooncake_pool_eviction_stalled_rounds", "Rounds of eviction that ended because nothing may go", "stalled_rounds"),
)
NODE_GAUGES: Final = (
    ("mooncake_node_capacity_bytes", "Bytes of a node's segment", "capacity_bytes"),
    ("mooncake_node_used_bytes", "Bytes that cannot be given out now, those in quarantine included", "used_bytes"),
    ("mooncake_node_quarantined_bytes", "Bytes on their way to being free", "quarantined_bytes"),
    ("mooncake_node_objects", "Replicas on a node, those being written included", "num_objects"),
)
NODE_COUNTERS: Final = (
    ("mooncake_node_hits", "Keys found whose readers were sent to a node first", "hits"),
    ("mooncake_node_hit_bytes", "Bytes of these objects", "hit_bytes"),
)
TENANT_GAUGES: Final = (
    (
        "mooncake_tenant_used_bytes",
        "Bytes of a tenant's objects on all nodes, those being written included",
        "used_bytes",
    ),
    ("mooncake_tenant_objects", "A tenant's objects that can be read", "num_objects"),
)
TENANT_COUNTERS: Final = (
    ("mooncake_tenant_hits", "Keys that a tenant's reads found", "hits"),
    ("mooncake_tenant_hit_bytes", "Bytes of the objects that a tenant's reads found", "hit_bytes"),
    ("mooncake_tenant_misses", "Keys that a tenant's reads did not find", "misses"),
)
BY_TIER: Final = (
    ("mooncake_tier_hits", "Keys that reads found, by where the object lay when it was asked for", "hits_by_tier"),
    ("mooncake_tier_hit_bytes", "Bytes of these objects", "hit_bytes_by_tier"),
    (
        "mooncake_tier_prompt_tokens_cached",
        "Prompt tokens from the cache, by where their block lay",
        "cached_tokens_by_tier",
    ),
)
TIER_LABELS: Final = ("node", "index", "tier")
TIER_GAUGES: Final = (
    ("mooncake_tier_capacity_bytes", "Most bytes that a node's tier may take", "capacity_bytes"),
    ("mooncake_tier_used_bytes", "Bytes that a node's tier has taken", "used_bytes"),
    ("mooncake_tier_objects", "Objects in a node's tier", "num_objects"),
)


class MasterCollector(Collector):
    """Asks the master's parts."""

    def __init__(self, state: MasterState) -> None:
        self._state = state

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: registering must not need figures."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All figures of now."""
        report = self._state.report()
        yield from _pool(report)
        nodes = {node.name: node for node in report.nodes}
        yield from _labelled(GaugeMetricFamily, "node", NODE_GAUGES, nodes)
        yield from _labelled(CounterMetricFamily, "node", NODE_COUNTERS, nodes)
        tenants = {tenant.tenant: tenant for tenant in report.tenants}
        yield from _labelled(GaugeMetricFamily, "tenant", TENANT_GAUGES, tenants)
        yield from _labelled(CounterMetricFamily, "tenant", TENANT_COUNTERS, tenants)
        yield from _tiers(report)
        yield self._members()
        text = "Nodes that are too full now, where nothing may go"
        yield GaugeMetricFamily("mooncake_pool_stalled_nodes", text, len(report.stalled_nodes))
        for name, text, value in self._single():
            yield GaugeMetricFamily(name, text, value)

    def _single(self) -> Iterator[tuple[str, str, float]]:
        pauses = self._state.pauses
        yield "mooncake_master_term", "The master's term", self._state.term
        yield "mooncake_requests_placed", "Requests placed and not ended", self._state.num_requests
        text = "Longest time the event loop ran without looking for new work"
        yield "mooncake_event_loop_longest_pause_seconds", f"{text}, since it was ready", pauses.longest_s
        yield "mooncake_event_loop_recent_pause_seconds", f"{text}, in the last one to two minutes", pauses.recent_s

    def _members(self) -> Metric:
        family = GaugeMetricFamily("mooncake_members", "Members of the cluster", labels=["role", "state"])
        for labels, count in sorted(Counter(self._state.member_states()).items()):
            family.add_metric(labels, count)
        return family


class MasterMetrics:
    """What `GET /metrics` shows: the master's figures and those of its process."""

    def __init__(self, state: MasterState) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(MasterCollector(state))
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


def _pool(report: CacheReport) -> Iterator[Metric]:
    for name, text, field in POOL_GAUGES:
        yield GaugeMetricFamily(name, text, getattr(report, field))
    for name, text, field in POOL_COUNTERS:
        yield CounterMetricFamily(name, text, getattr(report, field))


def _tiers(report: CacheReport) -> Iterator[Metric]:
    for name, text, field in BY_TIER:
        counted = CounterMetricFamily(name, text, labels=["tier"])
        for tier, number in getattr(report, field).items():
            counted.add_metric([tier], number)
        yield counted
    fills = {
        (node, str(index), fill.kind): fill for node, tiers in report.tiers.items() for index, fill in enumerate(tiers)
    }
    for name, text, field in TIER_GAUGES:
        family = GaugeMetricFamily(name, text, labels=TIER_LABELS)
        for labels, fill in fills.items():
            family.add_metric(labels, getattr(fill, field))
        yield family
    writable = GaugeMetricFamily(
        "mooncake_tier_takes_writes", "1, or 0 while a node's tier is in trouble", labels=TIER_LABELS
    )
    for labels, fill in fills.items():
        writable.add_metric(labels, 0 if fill.trouble else 1)
    yield writable


def _labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    label: str,
    figures: Iterable[tuple[str, str, str]],
    reports: Mapping[str, NodeUsage | TenantUsage],
) -> Iterator[Metric]:
    for name, text, field in figures:
        family = kind(name, text, labels=[label])
        for value, report in reports.items():
            family.add_metric([value], getattr(report, field))
        yield family
