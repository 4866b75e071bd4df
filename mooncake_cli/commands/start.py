"""mooncake start."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mooncake_cli import console, exits
from mooncake_cli.options import config_options, json_option, load

if TYPE_CHECKING:
    from mooncake_core.config.load import Loaded
    from mooncake_core.config.processes import ProcessSpec
    from mooncake_core.roles.run_directory import RunDirectory, StartState

ROLES = ("all", "master", "gateway", "store", "prefill", "decode")
DETACH_PATIENCE_S = 120.0
QUIET_S = 5.0
"""After so long a detached start says what it waits for."""
END_PATIENCE_S = 10.0
LOG_LINES_SHOWN = 10


@click.command("start", help="Start a cluster (--role all), or one role of it, on this host.")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What to start.")
@click.option("--name", help="Which entry of the role, by its name in the YAML. Default: all of them.")
@click.option("--detach", is_flag=True, help="Return once everything is ready; the log goes to the run directory.")
@config_options
@json_option
def command(
    role: str, name: str | None, detach: bool, config_path: Path | None, overrides: tuple[str, ...], as_json: bool
) -> int:
    if as_json and not detach:
        raise click.UsageError("--json tells what was started: give --detach as well")
    loaded = load(config_path, overrides)
    specs = _select(loaded, role, name)
    _check(loaded, specs)
    selection = "-".join(part for part in (role, name) if part)
    if detach:
        return _detach(loaded, specs, selection, as_json)
    return _serve(loaded, specs, selection)


def _select(loaded: Loaded, role: str, name: str | None) -> list[ProcessSpec]:
    """The processes to start; a local node comes with its instance."""
    from mooncake_core.config.processes import processes
    from mooncake_core.errors import UsageError

    specs = processes(loaded.config)
    of_role = [spec for spec in specs if role in ("all", spec.role) and (role != "store" or not spec.local_to)]
    chosen = [spec for spec in of_role if name is None or name in (spec.name, spec.entry, spec.local_to)]
    if not chosen:
        if not of_role:
            raise UsageError(
                f"{loaded.path} has no entry under `{role}`: add one, in the file or with --set '{role}=[{{name: {role}}}]'"
            )
        known = ", ".join(spec.name for spec in of_role)
        wanted = f"role {role}" + (f" called {name}" if name else "")
        raise UsageError(f"the configuration has no {wanted} (it has: {known})")
    owners = {spec.process for spec in chosen}  # whoever shares a process with one that was chosen comes along
    names = {spec.name for spec in specs if spec.process in owners}
    return [spec for spec in specs if spec.name in names or spec.local_to in names]


def _check(loaded: Loaded, specs: Sequence[ProcessSpec]) -> None:
    """Says what all processes would fail for, once and before any is started."""
    from mooncake_core.inference.models import resolve_model
    from mooncake_core.roles.context import load_key

    config = loaded.config
    load_key(config.auth.key_file if config.auth else None)
    if any(spec.role in ("gateway", "prefill", "decode") for spec in specs):
        resolve_model(config.model)


def _serve(loaded: Loaded, specs: list[ProcessSpec], selection: str) -> int:
    import asyncio

    from mooncake_core.roles.run_directory import RunDirectory
    from mooncake_core.roles.supervisor import Supervisor

    config = loaded.config
    state_file = RunDirectory(config.cluster).claim(selection, _process_names(specs))
    prefix = _Prefix(max(len(spec.process) for spec in specs))

    async def run() -> int:
        supervisor = Supervisor(
            config,
            specs,
            state_file=state_file,
            selection=selection,
            config_path=str(loaded.path.absolute()) if loaded.path else "",
            log=prefix.log,
            on_ready=_announce,
        )
        return await supervisor.run()

    try:
        return asyncio.run(run())
    finally:
        state_file.close()  # where it could not be written, nobody else does


def _announce(state: StartState) -> None:
    where = f"; the API is at {state.gateway_url}" if state.gateway_url else ""
    count = len(state.processes)
    console.note(f"cluster {state.cluster} is ready: {count} process{'es' if count > 1 else ''}{where}")
    console.note(f"try: {_next_command(state)}")


def _next_command(state: StartState) -> str:
    """What works with what was started; the rest of a cluster may run elsewhere, or not yet."""
    roles = {process.role for process in state.processes}
    if roles >= {"gateway", "prefill", "decode"}:
        return f'mooncake complete --cluster {state.cluster} "In the beginning"'
    is_pool = roles >= {"master", "store"} and not roles & {"prefill", "decode"}
    return f"mooncake {'inspect nodes' if is_pool else 'status'} --cluster {state.cluster}"


class _Prefix:
    """Puts the process's name before each line of its log, in a colour of its own on a terminal."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._colour = console.takes_colour(sys.stderr)
        self._lock = threading.Lock()

    def log(self, name: str, line: str) -> None:
        padded = name.ljust(self._width)
        if self._colour:
            padded = f"\x1b[{31 + sum(name.encode()) % 6}m{padded}\x1b[0m"
        with self._lock:
            console.note(f"{padded} | {line}")


def _detach(loaded: Loaded, specs: Sequence[ProcessSpec], selection: str, as_json: bool) -> int:
    """Starts the same command in a session of its own, and waits until it is ready or has failed."""
    from mooncake_core.roles.run_directory import RunDirectory

    directory = RunDirectory(loaded.config.cluster)
    directory.claim(selection, _process_names(specs)).close()  # says so now if it runs already
    log_file = directory.log_file(selection)
    with open(log_file, "wb") as log:
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--detach", "--json")]
        process = subprocess.Popen(
            [sys.executable, "-m", "mooncake_cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        state = _wait_until_ready(process, directory, log_file)
    except KeyboardInterrupt:
        console.note(f"interrupted: ending process {process.pid}, which is not ready yet")
        _end(process, directory.path.name)
        raise
    if state is None:
        _show_end(log_file, process.returncode)
        return process.returncode if process.returncode > 0 else exits.FAILED
    _report(state, log_file, as_json)
    return exits.DONE


def _wait_until_ready(process: subprocess.Popen[bytes], directory: RunDirectory, log_file: Path) -> StartState | None:
    """Its state once it is ready, or None where it ended before.

    Raises:
        DeadlineExceeded: it is not ready in time, and was ended.
    """
    from mooncake_core.errors import DeadlineExceeded

    waiting = log_file.stem
    started = time.monotonic()
    is_quiet = True
    while (passed_s := time.monotonic() - started) < DETACH_PATIENCE_S:
        for state in directory.states():
            if state.pid == process.pid:
                waiting = ", ".join(child.name for child in state.processes if not child.ready)
                if state.ready:
                    return state
        if process.poll() is not None:
            return None
        if is_quiet and passed_s > QUIET_S:
            is_quiet = False
            console.note(f"not ready yet: {waiting}; the end of {log_file}:\n{_tail(log_file, 1)}")
        time.sleep(0.05)
    _end(process, directory.path.name)
    raise DeadlineExceeded(
        f"not ready within {DETACH_PATIENCE_S:g}s: {waiting}; the last lines of {log_file}:\n"
        + _tail(log_file, LOG_LINES_SHOWN)
    )


def _tail(log_file: Path, num_lines: int) -> str:
    return "\n".join(log_file.read_text(errors="replace").splitlines()[-num_lines:])


def _end(process: subprocess.Popen[bytes], cluster: str) -> None:
    """Ends what is not to go on behind the user's back."""
    process.terminate()
    try:
        process.wait(END_PATIENCE_S)
    except subprocess.TimeoutExpired:
        console.note(f"process {process.pid} has not ended yet: `mooncake stop --cluster {cluster}` ends it")


def _show_end(log_file: Path, code: int) -> None:
    """Why a start ended, if there was room to write that down."""
    log = log_file.read_text(errors="replace").rstrip()
    if log:
        console.note(log)
    else:
        console.error(f"the start ended with code {code} and wrote nothing to {log_file}: is its disk full?")


def _process_names(specs: Sequence[ProcessSpec]) -> set[str]:
    return {spec.process for spec in specs}


def _report(state: StartState, log_file: Path, as_json: bool) -> None:
    if as_json:
        import msgspec

        console.json({**msgspec.to_builtins(state), "log": str(log_file)})
        return
    _announce(state)
    console.note(f"the log is {log_file}; `mooncake stop --cluster {state.cluster}` ends it")
