"""mooncake inspect cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits
from mooncake_cli.options import ask, cluster_options, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mooncake_core.wire.messages.inspection import CacheEntry, CacheReport
    from mooncake_core.wire.messages.objects import ObjectDescription, TenantUsage
    from mooncake_core.wire.messages.tiering import TierFill
    from mooncake_core.wire.messages.usage import HotPrefix, NodeUsage

DEFAULT_LISTED: Final = 20


@click.command("cache", help="What the pool holds and how much came from it; or all about one object, by its KEY.")
@click.argument("key", required=False)
@click.option("--key", "prefix", default="", help="List objects whose key begins so.")
@click.option("--tenant", default="default", show_default=True, help="Whose KEY it is.")
@click.option("--limit", default=0, show_default=True, type=click.IntRange(0), help="List so many objects.")
@click.option(
    "--hottest", default=5, show_default=True, type=click.IntRange(0), help="So many of the prefixes read most."
)
@click.option("--check", is_flag=True, help="Check that every byte is accounted for. Exit code 1 if one is not.")
@cluster_options
@json_option
def command(
    key: str | None, prefix: str, tenant: str, limit: int, hottest: int, check: bool, as_json: bool, **where: Any
) -> int:
    from mooncake_core.wire.messages.inspection import CacheReport, InspectCache
    from mooncake_core.wire.messages.objects import Describe, Described

    if key is not None:
        (found,) = ask(Describe(keys=[key], tenant=tenant), Described, **where).objects
        return _show_object(key, found, as_json)
    limit = limit or (DEFAULT_LISTED if prefix else 0)
    asked = InspectCache(prefix=prefix, limit=limit, check=check, hottest=hottest)
    report = ask(asked, CacheReport, **where)
    if as_json:
        console.json(_plain(report, check=check))
        return exits.FAILED if report.problems else exits.DONE
    rows = _rows(report)
    if check:
        rows.append(["check", "failed" if report.problems else "passed: every byte is accounted for"])
    console.table(["pool", "value"], rows)
    _print_hits(report)
    _print_nodes(report.nodes)
    _print_tiers(report.tiers)
    _print_tenants(report.tenants)
    _print_hottest(report.hottest)
    _print_entries(report.entries)
    for problem in report.problems:
        console.error(problem)
    return exits.FAILED if report.problems else exits.DONE


def _plain(report: CacheReport, *, check: bool) -> dict[str, Any]:
    import msgspec

    passed = {"check_passed": not report.problems} if check else {}
    ratios = {
        "token_hit_ratio": report.token_hit_ratio,
        "token_hit_ratio_by_tier": report.token_hit_ratio_by_tier,
        "byte_hit_ratio": report.byte_hit_ratio,
        "byte_hit_ratio_by_tier": report.byte_hit_ratio_by_tier,
    }
    return {**msgspec.to_builtins(report), **ratios, **passed}


def _show_object(key: str, found: ObjectDescription | None, as_json: bool) -> int:
    if found is None:
        console.error(f"the pool has no object {key}", "`mooncake inspect cache --key BEGINNING` lists objects")
        return exits.FAILED
    if as_json:
        import msgspec

        console.json({"object": msgspec.to_builtins(found)})
        return exits.DONE
    console.table(["object", found.key], _object_rows(found))
    console.data("")
    console.table(
        ["replica on", "slot", "offset"], [[replica.node, replica.slot, replica.offset] for replica in found.replicas]
    )
    return exits.DONE


def _object_rows(found: ObjectDescription) -> list[list[object]]:
    from mooncake_core.units import format_duration, format_size

    replaced: list[list[object]] = [["being replaced", "yes"]] if found.being_replaced else []
    tiered: list[list[object]] = [["in a tier of", ", ".join(found.tiered_on)]] if found.tiered_on else []
    soft = f"for {format_duration(found.soft_pin_s)}" if found.soft_pin_s else "no"
    return [
        ["tenant", found.tenant],
        ["size", format_size(found.size_bytes)],
        ["checksum", f"{found.checksum:016x}"],
        ["lease left", format_duration(found.lease_s) if found.lease_s else "none"],
        ["pinned", "hard" if found.hard_pinned else soft],
        ["idle", format_duration(found.idle_s)],
        ["block before it", found.parent or "-"],
        ["group", found.group or "-"],
        *tiered,
        *replaced,
    ]


def _rows(report: CacheReport) -> list[list[object]]:
    from mooncake_core.units import format_size

    tokens = f"{report.token_hit_ratio:.1%}" if report.prompt_tokens else "-"
    found = f"{report.byte_hit_ratio:.1%}" if report.hit_bytes or report.put_bytes else "-"
    per_object = f" ({report.master_bytes_per_object} bytes per object)" if report.master_bytes_per_object else ""
    return [
        ["objects", report.num_objects],
        ["being written", report.num_writing],
        ["used", f"{format_size(report.used_bytes)} of {format_size(report.capacity_bytes)}"],
        ["waiting to be free", format_size(report.quarantined_bytes)],
        ["puts", f"{report.puts} (skipped {report.skipped_puts}, refused {report.refused_puts})"],
        ["reads", f"{report.hits} hits, {report.misses} misses"],
        *([["evicted to a tier", report.demoted]] if report.tiers else []),
        ["evicted", f"{report.evicted} ({format_size(report.evicted_bytes)} in {report.eviction_rounds} rounds)"],
        ["eviction stalled", f"{report.stalled_rounds} times; now: {', '.join(report.stalled_nodes) or 'nowhere'}"],
        *([["refused for a tenant's quota", report.refused_by_quota]] if report.refused_by_quota else []),
        ["master's memory", format_size(report.master_bytes) + per_object],
        ["prompt tokens from the cache", f"{report.cached_tokens} of {report.prompt_tokens} ({tokens})"],
        ["bytes found", f"{format_size(report.hit_bytes)}, put {format_size(report.put_bytes)} ({found})"],
    ]


def _print_hits(report: CacheReport) -> None:
    """By where objects lay when they were asked for; where there is more than DRAM."""
    if not report.tiers and len(report.hits_by_tier) < 2:
        return
    from mooncake_core.units import format_size

    of_bytes, of_tokens = report.byte_hit_ratio_by_tier, report.token_hit_ratio_by_tier
    console.data("")
    console.table(
        ["found in", "objects", "bytes", "of all bytes", "prompt tokens", "of all prompt tokens"],
        [
            [
                tier,
                number,
                format_size(report.hit_bytes_by_tier.get(tier, 0)),
                f"{of_bytes.get(tier, 0.0):.1%}",
                report.cached_tokens_by_tier.get(tier, 0),
                f"{of_tokens.get(tier, 0.0):.1%}" if report.prompt_tokens else "-",
            ]
            for tier, number in report.hits_by_tier.items()
        ],
    )


def _fill(used_bytes: int, capacity_bytes: int) -> str:
    from mooncake_core.units import format_size

    return f"{format_size(used_bytes)} of {format_size(capacity_bytes)} ({used_bytes / max(1, capacity_bytes):.1%})"


def _print_nodes(nodes: Sequence[NodeUsage]) -> None:
    if not nodes:
        return
    from mooncake_core.units import format_size

    console.data("")
    console.table(
        ["node", "state", "objects", "full", "waiting to be free", "hits", "bytes found"],
        [
            [
                node.name,
                node.state,
                node.num_objects,
                _fill(node.used_bytes, node.capacity_bytes),
                format_size(node.quarantined_bytes),
                node.hits,
                format_size(node.hit_bytes),
            ]
            for node in nodes
        ],
    )


def _print_tiers(tiers: Mapping[str, Sequence[TierFill]]) -> None:
    if not tiers:
        return
    console.data("")
    console.table(
        ["tier of", "kind", "objects", "full", "trouble"],
        [
            [
                node,
                fill.kind,
                fill.num_objects,
                _fill(fill.used_bytes, fill.capacity_bytes),
                f"TAKES NONE: {fill.trouble}" if fill.trouble else "-",
            ]
            for node, fills in tiers.items()
            for fill in fills
        ],
    )


def _print_tenants(tenants: Sequence[TenantUsage]) -> None:
    """Where there are others than the default one."""
    if len(tenants) < 2:
        return
    from mooncake_core.units import format_size

    console.data("")
    console.table(
        ["tenant", "objects", "used", "quota", "hits", "misses", "of all keys", "bytes found"],
        [
            [
                tenant.tenant,
                tenant.num_objects,
                format_size(tenant.used_bytes),
                "-" if tenant.quota_bytes is None else format_size(tenant.quota_bytes),
                tenant.hits,
                tenant.misses,
                f"{tenant.hit_ratio:.1%}",
                format_size(tenant.hit_bytes),
            ]
            for tenant in tenants
        ],
    )


def _print_hottest(hottest: Sequence[HotPrefix]) -> None:
    if not hottest:
        return
    from mooncake_core.units import format_size

    console.data("")
    console.table(
        ["hottest prefix", "tenant", "reads", "overcount at most", "objects read", "bytes read"],
        [
            [
                prefix.head,
                prefix.tenant,
                prefix.reads,
                prefix.overcount,
                prefix.num_objects,
                format_size(prefix.size_bytes),
            ]
            for prefix in hottest
        ],
    )


def _print_entries(entries: Sequence[CacheEntry]) -> None:
    if not entries:
        return
    from mooncake_core.units import format_duration, format_size

    console.data("")
    console.table(
        ["key", "tenant", "size", "nodes", "leased", "pinned", "idle"],
        [
            [
                entry.key,
                entry.tenant,
                format_size(entry.size_bytes),
                ",".join([*entry.nodes, *(f"{node} (tier)" for node in entry.tiered_on)]),
                "yes" if entry.leased else "no",
                "yes" if entry.pinned else "no",
                format_duration(entry.idle_s),
            ]
            for entry in entries
        ],
    )
