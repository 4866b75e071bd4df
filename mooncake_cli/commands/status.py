"""mooncake status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mooncake_cli import console, exits
from mooncake_cli.options import cluster_options, find_running, json_option

if TYPE_CHECKING:
    from mooncake_core.wire.messages.inspection import MemberStatus

TIMEOUT_S = 5.0


@click.command(
    "status",
    help="Show the members of a running cluster. Exit code 1 while something it needs is missing.",
)
@cluster_options
@json_option
def command(config_path: Path | None, overrides: tuple[str, ...], cluster: str | None, as_json: bool) -> int:
    from mooncake_core.wire.messages.inspection import GetStatus, Status

    running = find_running(config_path, overrides, cluster)
    client = running.client()
    try:
        status = client.call(GetStatus(), Status, timeout_s=TIMEOUT_S)
    finally:
        client.close()
    if as_json:
        import msgspec

        urls = {"gateway_url": running.gateway_url, "admin_url": running.admin_url}
        console.json({**msgspec.to_builtins(status), **urls, "ready": not status.missing})
    else:
        state = "ready" if not status.missing else "not ready: " + "; ".join(status.missing)
        console.note(f"cluster {status.cluster} at {running.master_address}: {state}, {status.num_requests} requests")
        console.table(
            ["name", "role", "state", "pid", "address", "heard", "load"], [_row(member) for member in status.members]
        )
    return exits.FAILED if status.missing else exits.DONE


def _row(member: MemberStatus) -> list[object]:
    from mooncake_core.units import format_duration, format_size

    load = ""
    if member.load:
        free = f"{member.load.free_blocks}/{member.load.num_blocks} blocks free"
        load = f"{member.load.running_requests} running, {member.load.queued_requests} queued, {free}"
    elif member.capacity_bytes:
        used = f"{format_size(member.used_bytes)} of {format_size(member.capacity_bytes)}"
        load = f"{member.num_objects} objects, {used}"
    heard = f"{format_duration(member.last_heard_s)} ago"
    return [member.name, member.role, member.state, member.pid, member.control_address, heard, load]
