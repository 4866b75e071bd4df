"""mooncake stop."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import click

from mooncake_cli import console, exits
from mooncake_cli.options import cluster_options, json_option, load

PATIENCE_S = 60.0


@click.command("stop", help="Stop what was started on this host.")
@cluster_options
@json_option
def command(config_path: Path | None, overrides: tuple[str, ...], cluster: str | None, as_json: bool) -> int:
    from mooncake_core.roles import run_directory

    name = cluster or (load(config_path, overrides).config.cluster if config_path else None)
    states = run_directory.find(name)
    for state in states:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    left = states
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = run_directory.find(states[0].cluster)
    if as_json:
        console.json({"stopped": [state.pid for state in states if state not in left], "left": [s.pid for s in left]})
    elif not states:
        console.note("nothing runs here")
    else:
        console.note(f"stopped cluster {states[0].cluster}" if not left else f"process {left[0].pid} does not end")
    return exits.FAILED if left else exits.DONE
