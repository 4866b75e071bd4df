"""mooncake inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits
from mooncake_cli.commands import inspect_cache, inspect_requests, inspect_trace
from mooncake_cli.options import ask, cluster_options, json_option
from mooncake_cli.request_ids import belongs, resolve

if TYPE_CHECKING:
    from mooncake_core.wire.messages.inspection import Decision
    from mooncake_core.wire.messages.tasks import DrainStatus


ALL_KEPT: Final = 1 << 31
"""More than any master keeps."""


@click.group("inspect", help="Look into the cache, the nodes, requests, the scheduler's decisions, and traces.")
def command() -> None:
    """The group."""


command.add_command(inspect_cache.command)
command.add_command(inspect_requests.command)
command.add_command(inspect_trace.command)


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
            _drained(member.drain),
        ]
        for member in members
    ]
    console.table(["node", "state", "local to", "objects", "used", "capacity", "full", "drained"], rows)


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


def _drained(drain: DrainStatus | None) -> str:
    if drain is None:
        return "-"
    gone = drain.moved + drain.released + drain.dropped
    stuck = f", {drain.stuck} stuck ({drain.reason})" if drain.stuck else ""
    return f"{gone} of {gone + drain.objects_left}{stuck}"


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
