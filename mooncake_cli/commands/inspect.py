"""mooncake inspect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mooncake_cli import console
from mooncake_cli.commands import inspect_cache, inspect_decisions, inspect_requests, inspect_topology, inspect_trace
from mooncake_cli.options import ask, cluster_options, json_option

if TYPE_CHECKING:
    from mooncake_core.wire.messages.tasks import DrainStatus


@click.group(
    "inspect",
    help="Look into the cache, nodes, requests, the scheduler's decisions, this machine's NICs, traces.",
)
def command() -> None:
    """The group."""


command.add_command(inspect_cache.command)
command.add_command(inspect_decisions.command)
command.add_command(inspect_requests.command)
command.add_command(inspect_topology.command)
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


def _drained(drain: DrainStatus | None) -> str:
    if drain is None:
        return "-"
    gone = drain.moved + drain.released + drain.dropped
    stuck = f", {drain.stuck} stuck ({drain.reason})" if drain.stuck else ""
    return f"{gone} of {gone + drain.objects_left}{stuck}"
