"""Where a running cluster is found: `$XDG_RUNTIME_DIR/mooncake/<cluster>`, one state file per `mooncake start`.

A state file is locked while its supervisor lives, so a leftover of a killed one is recognised and removed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from mooncake_core import whole_file
from mooncake_core.config.schema import TlsConfig
from mooncake_core.errors import UsageError


class ProcessState(Struct, frozen=True, kw_only=True):
    """One process of a running cluster."""

    name: str
    role: str
    pid: int
    ready: bool = False
    metrics_urls: dict[str, str] = {}
    """Of its members that serve metrics on a port of their own."""


class StartState(Struct, frozen=True, kw_only=True):
    """What one `mooncake start` runs on this host."""

    cluster: str
    selection: str
    """`all`, or the role and name that were started."""
    pid: int
    """Of the supervisor."""
    config: str
    """The YAML it was started with; empty when there was none."""
    master_address: str
    gateway_url: str
    key_file: str
    processes: list[ProcessState]
    ready: bool
    admin_url: str = ""
    """Of the master's HTTP port for operators; empty where it has none."""
    tls: TlsConfig | None = None
    """Of its data connections over tcp."""
    weights: dict[str, float] = {}
    """As transfer.weights."""
    drain_s: float = 0.0
    """How long it finishes what runs, once it is told to stop."""


def runtime_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of all run directories of this user."""
    base = environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "mooncake" if base else Path(f"/tmp/mooncake-{os.getuid()}")


class RunDirectory:
    """The run directory of one cluster on this host."""

    def __init__(self, cluster: str, root: Path | None = None) -> None:
        self.path = (root or runtime_root()) / cluster

    def claim(self, selection: str, processes: Collection[str] = ()) -> StateFile:
        """Takes the state file of one selection, which is of these processes.

        Raises:
            UsageError: another live supervisor has it, or runs one of them; says its pid and what to do.
        """
        _make_private(self.path)
        file = StateFile(self.path / f"{selection}.json")
        for state in self.states():
            twice = [process.name for process in state.processes if process.name in processes]
            if twice and state.selection != selection:
                file.close()
                raise UsageError(_runs_here(state.cluster, f"{', '.join(twice)} of {state.selection}", state.pid))
        return file

    def states(self) -> list[StartState]:
        """What runs here, leftovers of dead supervisors removed."""
        return list(self._live()) if self.path.is_dir() else []

    def _live(self) -> Iterator[StartState]:
        for file in sorted(self.path.glob("*.json")):
            state = _live_state(file)
            if state is not None:
                yield state

    def log_file(self, selection: str) -> Path:
        """Where a detached start writes its log."""
        return self.path / f"{selection}.log"


class StateFile:
    """A claimed state file; released (and removed) by `close`, or recognised as stale once the process is dead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _lock(path)

    def write(self, state: StartState) -> None:
        """Replaces the content; readers see the old or the new one.

        Raises:
            OSError: the disk is full, say; names the file, and leaves no other.
        """
        try:
            whole_file.write(self._path, msgspec.json.format(msgspec.json.encode(state), indent=2))
        except OSError as error:
            raise OSError(error.errno, f"cannot be written ({error.strerror})", str(self._path)) from error

    def close(self) -> None:
        """Gives the file up. Idempotent."""
        if self._lock.closed:
            return
        self._path.unlink(missing_ok=True)
        _lock_path(self._path).unlink(missing_ok=True)
        self._lock.close()


def clusters(root: Path | None = None) -> list[str]:
    """Names of the clusters that run on this host under this user."""
    base = root or runtime_root()
    if not base.is_dir():
        return []
    return [entry.name for entry in sorted(base.iterdir()) if RunDirectory(entry.name, base).states()]


def find(cluster: str | None = None, root: Path | None = None) -> list[StartState]:
    """The states of the named cluster, or of the only one that runs.

    Raises:
        UsageError: several clusters run and none was named.
    """
    if cluster is not None:
        return RunDirectory(cluster, root).states()
    running = clusters(root)
    if len(running) > 1:
        raise UsageError(f"several clusters run here ({', '.join(running)}): say which with --cluster NAME or -c FILE")
    return RunDirectory(running[0], root).states() if running else []


def _make_private(path: Path) -> None:
    root = path.parent
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if root.stat().st_uid != os.getuid():
        raise UsageError(f"{root} belongs to another user: set XDG_RUNTIME_DIR to a folder of your own")
    path.mkdir(exist_ok=True, mode=0o700)


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _lock(path: Path) -> IO[bytes]:
    file = os.fdopen(os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        state = _decode(path)
        pid = state.pid if state else "unknown"
        raise UsageError(_runs_here(path.parent.name, path.stem, pid)) from None
    return file


def _runs_here(cluster: str, part: str, pid: int | str) -> str:
    return f"cluster {cluster} ({part}) already runs here as process {pid}: `mooncake stop --cluster {cluster}` ends it"


def _live_state(path: Path) -> StartState | None:
    """The state in `path` if its supervisor lives; else removes what it left."""
    try:
        with open(_lock_path(path), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        return _decode(path)
    path.unlink(missing_ok=True)
    _lock_path(path).unlink(missing_ok=True)
    return None


def _decode(path: Path) -> StartState | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=StartState)
    except (msgspec.MsgspecError, FileNotFoundError):
        return None
