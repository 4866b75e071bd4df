"""mooncake admin drain, mooncake admin undrain."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from mooncake_cli import console, exits, progress
from mooncake_cli.options import ask, cluster_options, json_option
from mooncake_cli.quantities import DURATION

if TYPE_CHECKING:
    from mooncake_core.wire.messages.tasks import DrainStatus

POLL_S: Final = 0.25
STUCK_BECAUSE: Final = {
    "no_space": "no other node has room for them; add a node, remove or evict objects, or drop them with --force",
    "deadline_exceeded": "copying them did not end in time; `mooncake inspect nodes` shows who is there",
    "too_many_tasks": "too many copies are under way; they are tried again",
}
"""In words, by the code of the error that the latest of them met."""


@click.command(
    "drain", help="Move everything off a node, and give it nothing new. Exit code 1 while something is left."
)
@click.argument("node")
@click.option("--force", is_flag=True, help="Drop what fits on no other node, pinned objects too.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is drained, or stuck.")
@click.option("--timeout", default="10m", show_default=True, type=DURATION, help="Wait at most so long.")
@cluster_options
@json_option
def drain(node: str, force: bool, wait: bool, timeout: float, as_json: bool, **where: Any) -> int:
    from mooncake_core.wire.messages.envelope import Done
    from mooncake_core.wire.messages.tasks import DrainNode

    ask(DrainNode(name=node, force=force), Done, **where)
    status = _watch(node, timeout, where) if wait else _status(node, where)
    if as_json:
        import msgspec

        console.json({"drain": msgspec.to_builtins(status)})
    else:
        console.data(_sentence(status))
    return exits.DONE if status.state == "drained" or not wait else exits.FAILED


@click.command("undrain", help="Let a node take objects again.")
@click.argument("node")
@cluster_options
@json_option
def undrain(node: str, as_json: bool, **where: Any) -> int:
    from mooncake_core.wire.messages.envelope import Done
    from mooncake_core.wire.messages.tasks import UndrainNode

    ask(UndrainNode(name=node), Done, **where)
    if as_json:
        console.json({"undrained": node})
    else:
        console.data(f"{node} takes objects again")
    return exits.DONE


def _watch(node: str, timeout_s: float, where: dict[str, Any]) -> DrainStatus:
    """Polls until nothing changes any more, or the time is over."""
    deadline = time.monotonic() + timeout_s
    status = _status(node, where)
    total = status.objects_left + status.moved + status.released + status.dropped
    show = progress.counter(total, f"objects of {node} moved")
    while status.state == "draining" and time.monotonic() < deadline:
        time.sleep(POLL_S)
        status = _status(node, where)
        show(min(total, status.moved + status.released + status.dropped))
    return status


def _status(node: str, where: dict[str, Any]) -> DrainStatus:
    """How far it is.

    Raises:
        NodeNotFound: the node has left, or was undrained meanwhile.
    """
    from mooncake_core.errors import NodeNotFound
    from mooncake_core.wire.messages.tasks import Drains, QueryDrains

    found = ask(QueryDrains(names=[node]), Drains, **where).drains
    if not found:
        raise NodeNotFound(f"expected {node} to be drained, but it has left, or somebody has undrained it")
    return found[0]


def _sentence(status: DrainStatus) -> str:
    from mooncake_core.units import format_size

    done = f"{status.moved} objects moved, {status.released} had another replica, {status.dropped} dropped"
    if status.state == "drained":
        return f"{status.name} is drained: {done}; its process may be stopped"
    left = f"{status.objects_left} objects, {format_size(status.bytes_left)} left"
    if status.state == "stuck":
        why = STUCK_BECAUSE.get(status.reason, status.reason)
        return f"{status.name} is stuck: {done}; {left}, {status.stuck} cannot be moved: {why}"
    return f"{status.name} is being drained: {done}; {left}"
