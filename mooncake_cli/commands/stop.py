"""mooncake stop."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mooncake_cli import console, exits
from mooncake_cli.options import cluster_name, cluster_options, json_option

if TYPE_CHECKING:
    from mooncake_core.roles.run_directory import StartState

PATIENCE_S = 10.0
PARTS_PATIENCE_S = 5.0
"""Beyond the time they take to finish what runs."""


@click.command("stop", help="Stop what was started on this host.")
@cluster_options
@json_option
def command(config_path: Path | None, overrides: tuple[str, ...], cluster: str | None, as_json: bool) -> int:
    from mooncake_core.roles import run_directory

    name = cluster_name(config_path, overrides, cluster)
    states = run_directory.find(name)
    masters = [state for state in states if any(process.role == "master" for process in state.processes)]
    _end([state for state in states if state not in masters], PARTS_PATIENCE_S)  # they need the master to leave it
    _end(masters, PATIENCE_S)
    pids = {state.pid for state in states}
    left = [state for state in run_directory.find(states[0].cluster) if state.pid in pids] if states else []
    gone = sorted(pids - {state.pid for state in left})
    if as_json:
        console.json({"stopped": gone, "left": [state.pid for state in left]})
    elif not states:
        console.note(_nothing_to_stop(name))
    else:
        console.note(f"stopped cluster {states[0].cluster}" if not left else f"process {left[0].pid} does not end")
    return exits.FAILED if left else exits.DONE


def _nothing_to_stop(name: str | None) -> str:
    from mooncake_core.roles import run_directory

    if name is None:
        return "nothing runs here"
    running = ", ".join(run_directory.clusters())
    return f"no cluster called {name} runs here" + (f"; there is: {running}" if running else ", and no other")


def _end(states: Sequence[StartState], patience_s: float) -> None:
    """Tells supervisors to end, and waits for them."""
    from mooncake_core.roles import run_directory

    for state in states:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s + max((state.drain_s for state in states), default=0.0)
    pids = {state.pid for state in states}
    while pids and time.monotonic() < deadline:
        time.sleep(0.05)
        pids &= {state.pid for state in run_directory.find(states[0].cluster)}
