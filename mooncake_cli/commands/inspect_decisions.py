"""mooncake inspect decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits
from mooncake_cli.options import ask, cluster_options, json_option
from mooncake_cli.request_ids import bare, belongs, resolve

if TYPE_CHECKING:
    from mooncake_core.wire.messages.inspection import CandidateScore, Decision

ALL_KEPT: Final = 1 << 31
"""More than any master keeps."""
EACH: Final = "*"

HELP = """Why requests went where they went, the newest first; or of one, named by its id or the beginning of it.

\b
Examples:
  mooncake inspect decisions
  mooncake inspect decisions --why cmpl-3f2a
  mooncake inspect decisions --why cmpl-3f2a --candidates 100

The scheduler keeps its latest decisions (scheduler.decisions), each with what it expected of all instances then.
"""


@click.command("decisions", help=HELP, short_help="Why requests went where they went.")
@click.argument("request_id", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="So many decisions.")
@click.option(
    "--why",
    is_flag=False,
    flag_value=EACH,
    metavar="[ID]",
    help="With what was expected of the instances: of this request, or of each.",
)
@click.option(
    "--candidates",
    default=9,
    show_default=True,
    type=click.IntRange(1),
    help="So many instances for each decision: the one that was chosen, and the next best.",
)
@cluster_options
@json_option
def command(request_id: str | None, limit: int, why: str | None, candidates: int, as_json: bool, **where: Any) -> int:
    request_id = request_id or (why if why != EACH else None)
    request_id = bare(request_id) if request_id else None
    found = _decisions_of(request_id, candidates, where) if request_id else _latest(limit, candidates, where)
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
    console.table(columns, [_row(decision) for decision in found])
    if request_id or why:
        for decision in found:
            console.data("")
            _explain(decision)
    return exits.DONE


def _latest(limit: int, candidates: int, where: dict[str, Any]) -> list[Decision]:
    from mooncake_core.wire.messages.inspection import Decisions, InspectDecisions

    return ask(InspectDecisions(limit=limit, num_candidates=candidates), Decisions, **where).decisions


def _decisions_of(request_id: str, candidates: int, where: dict[str, Any]) -> list[Decision]:
    from mooncake_core.wire.messages.inspection import Decisions, InspectDecisions

    message = InspectDecisions(limit=ALL_KEPT, request_id=request_id, num_candidates=candidates)
    found = ask(message, Decisions, **where).decisions
    request = resolve(request_id, (decision.request_id for decision in found))
    return [decision for decision in found if request and belongs(decision.request_id, request)]


def _row(decision: Decision) -> list[object]:
    from mooncake_core.units import format_duration

    winner = next((score for score in decision.candidates if score.prefill == decision.prefill), None)
    matched = f"{winner.local_blocks}+{winner.fetched_blocks}" if winner else "-"
    best = f"{decision.best_match_blocks}@{decision.best_match_holder}" if decision.best_match_holder else "-"
    outcome = decision.outcome if decision.stage == "arrival" else f"{decision.outcome} at {decision.stage}"
    return [
        decision.request_id[:12],
        format_duration(decision.age_s),
        decision.prompt_tokens,
        outcome,
        decision.prefill or "-",
        decision.decode or "-",
        f"{matched}/{decision.prompt_blocks}",
        best,
        format_duration(decision.expected_ttft_s),
        format_duration(decision.expected_tbt_s),
        decision.reason,
    ]


def _explain(decision: Decision) -> None:
    """All that was weighed."""
    from mooncake_core.units import format_duration

    at = "" if decision.stage == "arrival" else f" at {decision.stage}, when its prefill had ended"
    whose = f" of tenant {decision.tenant}" if decision.tenant else ""
    console.data(f"{decision.request_id}{whose}: {decision.outcome}{at} by policy {decision.policy}")
    if decision.reason:
        console.data(decision.reason)
    if decision.candidates:
        shown, known = len(decision.candidates), decision.num_candidates
        console.data(f"prefill: {shown} of {known} instances" if shown < known else f"prefill: all {known} instances")
        blocks = ["local", "fetched", "loaded", "recomputed"]
        columns = ["candidate", "", *blocks, "queue", "transfer", "prefill", "ttft", "free blocks"]
        console.table(columns, [_candidate(decision, score) for score in decision.candidates])
    if decision.best_match_lower_blocks:
        console.data(
            f"best match: {decision.best_match_blocks} blocks at {decision.best_match_holder}, "
            f"{decision.best_match_lower_blocks} of them below DRAM"
        )
    if decision.decodes:
        console.data("decode: instances with room")
        rows = [
            [
                score.decode,
                "chosen" if score.decode == decision.decode else "",
                format_duration(score.tbt_s),
                score.free_blocks,
            ]
            for score in decision.decodes
        ]
        console.table(["candidate", "", "tbt", "free blocks"], rows)


def _candidate(decision: Decision, score: CandidateScore) -> list[object]:
    from mooncake_core.units import format_duration

    longest = max(_held(other) for other in decision.candidates)
    marks = [
        mark
        for mark, holds in (
            ("chosen", score.prefill == decision.prefill),
            ("best match", bool(longest) and _held(score) == longest),
        )
        if holds
    ]
    return [
        score.prefill,
        ", ".join(marks),
        score.local_blocks,
        score.fetched_blocks,
        score.loaded_blocks,
        score.recomputed_blocks,
        format_duration(score.queue_s),
        format_duration(score.transfer_s),
        format_duration(score.prefill_s),
        format_duration(score.ttft_s),
        score.free_blocks,
    ]


def _held(score: CandidateScore) -> int:
    """Of a master of the version before, which does not say it, what it would use."""
    return max(score.held_blocks, score.local_blocks)
