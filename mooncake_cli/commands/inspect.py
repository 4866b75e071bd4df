"""mooncake inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits
from mooncake_cli.commands import inspect_requests
from mooncake_cli.options import ask, cluster_options, json_option
from mooncake_cli.request_ids import belongs, resolve

if TYPE_CHECKING:
    from mooncake_core.wire.messages.inspection import CacheReport, Decision
    from mooncake_core.wire.messages.tiering import TierFill


ALL_KEPT: Final = 1 << 31
"""More than any master keeps."""


@click.group("inspect", help="Look into the cache, the nodes, requests, and the scheduler's decisions.")
def command() -> None:
    """The group."""


command.add_command(inspect_requests.command)


@command.command("cache", help="What the pool holds, and how much of the prompts came from it.")
@click.option("--key", "prefix", default="", help="Only objects whose key begins so.")
@click.option("--limit", default=0, show_default=True, help="List so many objects.")
@click.option("--check", is_flag=True, help="Check that every byte is accounted for. Exit code 1 if one is not.")
@cluster_options
@json_option
def cache(prefix: str, limit: int, check: bool, as_json: bool, **where: Any) -> int:
    from mooncake_core.wire.messages.inspection import CacheReport, InspectCache

    limit = limit or (20 if prefix else 0)
    report = ask(InspectCache(prefix=prefix, limit=limit, check=check), CacheReport, **where)
    if as_json:
        import msgspec

        passed = {"check_passed": not report.problems} if check else {}
        console.json({**msgspec.to_builtins(report), **passed})
        return exits.FAILED if report.problems else exits.DONE
    rows = _cache_rows(report)
    if check:
        rows.append(["check", "failed" if report.problems else "passed: every byte is accounted for"])
    console.table(["pool", "value"], rows)
    if report.entries:
        from mooncake_core.units import format_duration, format_size

        console.data("")
        console.table(
            ["key", "size", "nodes", "leased", "idle"],
            [
                [
                    entry.key,
                    format_size(entry.size_bytes),
                    ",".join([*entry.nodes, *(f"{node} (tier)" for node in entry.tiered_on)]),
                    "yes" if entry.leased else "no",
                    format_duration(entry.idle_s),
                ]
                for entry in report.entries
            ],
        )
    for problem in report.problems:
        console.error(problem)
    return exits.FAILED if report.problems else exits.DONE


@command.command("nodes", help="The nodes of the pool and how full they are.")
@cluster_options
@json_option
def nodes(as_json: bool, **where: Any) -> None:
    from mooncake_core.units import format_size
    from mooncake_core.wire.messages.inspection import GetStatus, Status

    members = [member for member in ask(GetStatus(), Status, **where).members if member.role == "store"]
    if as_json:
        import msgspec

        console.json({"nodes": msgspec.to_builtins(members)})
        return
    rows = [
        [
            member.name,
            member.state,
            member.local_to or "-",
            member.num_objects,
            format_size(member.used_bytes),
            format_size(member.capacity_bytes),
            f"{member.used_bytes / max(1, member.capacity_bytes):.1%}",
        ]
        for member in members
    ]
    console.table(["node", "state", "local to", "objects", "used", "capacity", "full"], rows)


@command.command(
    "decisions",
    help="Why requests went where they went, the newest first; or of one, named by its id or the beginning of it.",
)
@click.argument("request_id", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="So many decisions.")
@click.option(
    "--why", is_flag=True, help="With all candidates and what was expected of them; so it is for one request."
)
@cluster_options
@json_option
def decisions(request_id: str | None, limit: int, why: bool, as_json: bool, **where: Any) -> int:
    found = _decisions_of(request_id, where) if request_id else _latest_decisions(limit, where)
    if request_id and not found:
        console.error(
            f"no decision about a request {request_id} is kept", "`mooncake inspect decisions` lists the latest"
        )
        return exits.FAILED
    found = found[:limit]
    if as_json:
        import msgspec

        console.json({"decisions": msgspec.to_builtins(found)})
        return exits.DONE
    columns = [
        "request",
        "age",
        "tokens",
        "outcome",
        "prefill",
        "decode",
        "matched local+fetched/blocks",
        "best match",
        "ttft",
        "tbt",
        "reason",
    ]
    console.table(columns, [_decision_row(decision) for decision in found])
    if request_id or why:
        for decision in found:
            console.data("")
            _candidates(decision)
    return exits.DONE


def _latest_decisions(limit: int, where: dict[str, Any]) -> list[Decision]:
    from mooncake_core.wire.messages.inspection import Decisions, InspectDecisions

    return ask(InspectDecisions(limit=limit), Decisions, **where).decisions


def _decisions_of(request_id: str, where: dict[str, Any]) -> list[Decision]:
    from mooncake_core.wire.messages.inspection import Decisions, InspectDecisions

    found = ask(InspectDecisions(limit=ALL_KEPT, request_id=request_id), Decisions, **where).decisions
    request = resolve(request_id, (decision.request_id for decision in found))
    return [decision for decision in found if request and belongs(decision.request_id, request)]


def _cache_rows(report: CacheReport) -> list[list[object]]:
    from mooncake_core.units import format_size

    share = f"{report.cached_tokens / report.prompt_tokens:.1%}" if report.prompt_tokens else "-"
    hits: list[list[object]] = [
        [f"hits in {tier}", f"{number} ({format_size(report.hit_bytes_by_tier.get(tier, 0))})"]
        for tier, number in report.hits_by_tier.items()
    ]
    tiers: list[list[object]] = [
        [f"{node} {fill.kind}", _tier_words(fill)] for node, fills in report.tiers.items() for fill in fills
    ]
    return [
        ["objects", report.num_objects],
        ["being written", report.num_writing],
        ["used", f"{format_size(report.used_bytes)} of {format_size(report.capacity_bytes)}"],
        ["waiting to be free", format_size(report.quarantined_bytes)],
        ["puts", f"{report.puts} (skipped {report.skipped_puts}, refused {report.refused_puts})"],
        ["reads", f"{report.hits} hits, {report.misses} misses"],
        *hits,
        ["evicted", f"{report.evicted} ({report.demoted} of them to a tier)" if tiers else report.evicted],
        *tiers,
        ["prompt tokens from the cache", f"{report.cached_tokens} of {report.prompt_tokens} ({share})"],
    ]


def _tier_words(fill: TierFill) -> str:
    from mooncake_core.units import format_size

    used = f"{format_size(fill.used_bytes)} of {format_size(fill.capacity_bytes)}, {fill.num_objects} objects"
    return f"{used}; TAKES NONE: {fill.trouble}" if fill.trouble else used


def _decision_row(decision: Decision) -> list[object]:
    from mooncake_core.units import format_duration

    winner = next((score for score in decision.candidates if score.prefill == decision.prefill), None)
    matched = f"{winner.local_blocks}+{winner.fetched_blocks}" if winner else "-"
    best = f"{decision.best_match_blocks}@{decision.best_match_holder}" if decision.best_match_holder else "-"
    return [
        decision.request_id[:12],
        format_duration(decision.age_s),
        decision.prompt_tokens,
        decision.outcome,
        decision.prefill or "-",
        decision.decode or "-",
        f"{matched}/{decision.prompt_blocks}",
        best,
        format_duration(decision.expected_ttft_s),
        format_duration(decision.expected_tbt_s),
        decision.reason,
    ]


def _candidates(decision: Decision) -> None:
    from mooncake_core.units import format_duration

    rows = [
        [
            score.prefill,
            score.local_blocks,
            score.fetched_blocks,
            format_duration(score.queue_s),
            format_duration(score.transfer_s),
            format_duration(score.prefill_s),
            format_duration(score.ttft_s),
            score.free_blocks,
        ]
        for score in decision.candidates
    ]
    console.data(f"{decision.request_id}: {decision.outcome} by policy {decision.policy}")
    console.table(["candidate", "local", "fetched", "queue", "transfer", "prefill", "ttft", "free blocks"], rows)
