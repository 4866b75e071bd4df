"""mooncake admin copy, mooncake admin replicate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mooncake_cli import console, exits
from mooncake_cli.commands.admin_tasks import print_tasks, wait_for
from mooncake_cli.options import ask, cluster_options, json_option, tenant_option

if TYPE_CHECKING:
    from mooncake_core.wire.messages.tasks import StartedTask

wait_option = click.option("--wait", is_flag=True, help="Wait until all have ended. Exit code 1 if one has failed.")


@click.command("copy", help="Copy objects to a node, or move them there.")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--to", "target", required=True, metavar="NODE", help="Where they are to be.")
@click.option("--from", "source", default="", metavar="NODE", help="Where they are; any node that has them by default.")
@click.option("--move", is_flag=True, help="They are to be at the source no more.")
@wait_option
@tenant_option
@cluster_options
@json_option
def copy(
    keys: tuple[str, ...], target: str, source: str, move: bool, wait: bool, tenant: str, as_json: bool, **where: Any
) -> int:
    from mooncake_core.wire.messages.tasks import CopyObjects, TasksStarted

    message = CopyObjects(keys=list(keys), target=target, source=source, move=move, tenant=tenant)
    return _report(ask(message, TasksStarted, **where).tasks, wait, as_json, where)


@click.command("replicate", help="See to it that objects have so many replicas, on nodes that the master chooses.")
@click.argument("keys", nargs=-1, metavar="[KEY...]")
@click.option("--prefix", default="", help="All objects whose key begins so.")
@click.option("-n", "--replicas", required=True, type=click.IntRange(1), help="So many replicas.")
@wait_option
@tenant_option
@cluster_options
@json_option
def replicate(
    keys: tuple[str, ...], prefix: str, replicas: int, wait: bool, tenant: str, as_json: bool, **where: Any
) -> int:
    from mooncake_core.errors import UsageError
    from mooncake_core.wire.messages.tasks import ReplicateObjects, TasksStarted

    if not keys and not prefix:
        raise UsageError("which objects? give their keys, or --prefix")
    message = ReplicateObjects(keys=list(keys), prefix=prefix, replicas=replicas, tenant=tenant)
    return _report(ask(message, TasksStarted, **where).tasks, wait, as_json, where)


def _report(started: list[StartedTask], wait: bool, as_json: bool, where: dict[str, Any]) -> int:
    """Says what was begun, or what became of it; and what was refused."""
    refused = [task for task in started if task.refusal]
    task_ids = [task.task_id for task in started if not task.refusal]
    tasks = wait_for(task_ids, where) if wait and task_ids else []
    failed = [task for task in tasks if task.state != "done"]
    if as_json:
        import msgspec

        console.json({"started": msgspec.to_builtins(started), "tasks": msgspec.to_builtins(tasks)})
    elif tasks:
        print_tasks(tasks)
    else:
        rows = [[task.task_id, task.key, task.target] for task in started if not task.refusal]
        console.table(["task", "key", "to"], rows)
    for task in refused:
        console.error(f"{task.key}{f' to {task.target}' if task.target else ''}: {task.refusal}")
    return exits.FAILED if refused or failed else exits.DONE
