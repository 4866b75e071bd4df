"""mooncake admin tasks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import ask, cluster_options, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mooncake_core.wire.messages.tasks import TaskStatus

POLL_S: Final = 0.25
ASKED_AT_ONCE: Final = 1000


@click.command(
    "tasks", help="Copies and moves of objects, the newest first, or those named. Exit code 1 for an unknown one."
)
@click.argument("task_ids", nargs=-1, type=int, metavar="[TASK...]")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="So many.")
@click.option("--cancel", is_flag=True, help="End the tasks that are named.")
@cluster_options
@json_option
def command(task_ids: tuple[int, ...], limit: int, cancel: bool, as_json: bool, **where: Any) -> int:
    from mooncake_core.errors import UsageError
    from mooncake_core.wire.messages.tasks import CancelTasks, QueryTasks, TaskReport, TasksCancelled

    if cancel and not task_ids:
        raise UsageError("which tasks? `mooncake admin tasks` lists their numbers")
    refusals = ask(CancelTasks(task_ids=list(task_ids)), TasksCancelled, **where).refusals if cancel else []
    report = ask(QueryTasks(task_ids=list(task_ids), limit=limit), TaskReport, **where)
    if as_json:
        import msgspec

        console.json({**msgspec.to_builtins(report), "refusals": refusals})
    else:
        console.note(f"{report.running} tasks run, {report.pending} wait")
        print_tasks(report.tasks)
    known = {task.task_id for task in report.tasks}
    for number, refusal in zip(task_ids, refusals or [""] * len(task_ids), strict=True):
        if refusal or number not in known:
            console.error(
                f"task {number}: {refusal or 'not known; the master forgets old tasks, and those of the last one'}"
            )
    return exits.FAILED if any(refusals) or not known.issuperset(task_ids) else exits.DONE


def print_tasks(tasks: Sequence[TaskStatus]) -> None:
    """One line each."""
    from mooncake_core.units import format_duration

    rows = [
        [
            task.task_id,
            task.key,
            "move" if task.move else "copy",
            task.source or "-",
            task.target,
            task.state,
            task.attempts,
            format_duration(task.age_s),
            task.reason or "-",
        ]
        for task in tasks
    ]
    console.table(["task", "key", "what", "from", "to", "state", "attempts", "age", "reason"], rows)


def wait_for(task_ids: Sequence[int], where: dict[str, Any]) -> list[TaskStatus]:
    """The tasks, when all of them have ended."""
    from mooncake_core.wire.messages.tasks import QueryTasks, TaskReport

    ended: dict[int, TaskStatus] = {}
    left = list(task_ids)
    show = progress.counter(len(left), "tasks ended")
    while left:
        now = left[:ASKED_AT_ONCE]
        known = {task.task_id: task for task in ask(QueryTasks(task_ids=now), TaskReport, **where).tasks}
        ended |= {number: task for number, task in known.items() if task.state not in ("pending", "running")}
        left = [number for number in left if number not in ended and (number in known or number not in now)]
        show(len(ended))
        if left:
            time.sleep(POLL_S)
    return [ended[number] for number in task_ids if number in ended]
