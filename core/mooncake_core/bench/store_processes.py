"""The processes of `mooncake bench store`: a master, segments, clients. They end with this one at the latest."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

from mooncake_core.config.schema import TlsConfig
from mooncake_core.config.tls import absolute
from mooncake_core.errors import MooncakeError, PluginUnavailable, StoreError, UsageError
from mooncake_core.units import format_duration

HOST: Final = "127.0.0.1"
START_S: Final = 60.0
PHASE_S: Final = 600.0
END_S: Final = 10.0
POLL_S: Final = 0.02
LOG_LINES_SHOWN: Final = 5
CLIENT_BUFFER_BYTES: Final = 512 << 20
"""What clients ask for as their local buffer: implementations that copy need room for what is under way."""
WORKERS: Final = Path(__file__).parent / "store_worker"
FOREIGN_VARIABLES: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Of this interpreter's environment; another one must find its own packages."""
KEY_VARIABLE: Final = "MOONCAKE_KEY_FILE"
TLS_VARIABLES: Final = ("MOONCAKE_TLS_CERTIFICATE", "MOONCAKE_TLS_KEY", "MOONCAKE_TLS_CA")
WEIGHTS_VARIABLE: Final = "MOONCAKE_WEIGHTS"
CHECKSUM_VARIABLE: Final = "MOONCAKE_CHECKSUM"
BUSY_POLL_VARIABLE: Final = "MOONCAKE_BUSY_POLL"
OWN_VARIABLES: Final = (KEY_VARIABLE, *TLS_VARIABLES, WEIGHTS_VARIABLE, BUSY_POLL_VARIABLE)


class Interpreter:
    """A Python with a `mooncake.store`, and the master that belongs to it."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.is_own = Path(python).absolute() == Path(sys.executable).absolute()

    @property
    def environ(self) -> dict[str, str]:
        """Without what a cluster or a measurement sets: what is started here has none of it, but what it is given."""
        left_out = (*OWN_VARIABLES, *(() if self.is_own else FOREIGN_VARIABLES))
        return {name: value for name, value in os.environ.items() if name not in left_out}

    @contextmanager
    def master(self, folder: Path, busy_poll_s: float = 0.0) -> Generator[str]:
        """A master of its own while the context lasts; yields host:port. `busy_poll_s` is for one of this project.

        Raises:
            StoreError: it does not start; shows the end of its log.
        """
        foreign = Path(self.python).parent / "mooncake_master"
        if not self.is_own and foreign.exists():
            port, metrics_port = free_port(), free_port()
            command = [str(foreign), f"--rpc_port={port}", f"--metrics_port={metrics_port}"]
            guard = [self.python, str(WORKERS / "guard.py"), *command]
            with Process("master", guard, self.environ, folder) as process:
                process.wait_for_port(port)
                yield f"{HOST}:{port}"
        else:
            environ = {**self.environ, "XDG_RUNTIME_DIR": str(folder)}
            command = [self.python, "-m", "mooncake_core.roles.process", "master"]
            with Process("master", command, environ, folder) as process:
                process.send(_boot(busy_poll_s))
                yield str(process.receive(START_S)["address"]).removeprefix("tcp://")


class Process:
    """A child that speaks JSON lines. Its log is a file, of which errors show the end."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        self._name = name
        self._log_path = folder / f"{name}.log"
        with open(self._log_path, "wb") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                cwd=folder,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """One line.

        Raises:
            StoreError: the process has ended.
        """
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._error("ended") from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next line.

        Raises:
            PluginUnavailable: its interpreter lacks what is to be measured.
            StoreError: it says that something else went wrong, or nothing within the time.
        """
        if not select.select([self._stdout], [], [], timeout_s)[0]:
            raise self._error(f"did not answer within {timeout_s:g}s")
        line = self._stdout.readline()
        if not line:
            raise self._error("ended")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("not_installed"):
            raise PluginUnavailable(answer["error"])
        if "error" in answer:
            raise self._error(f"says: {answer['error']}")
        return answer

    def wait_for_port(self, port: int) -> None:
        """Until somebody listens there.

        Raises:
            StoreError: the process ended, or nobody listens in time.
        """
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    return
            if self._child.poll() is not None:
                raise self._error("ended")
            time.sleep(POLL_S)
        raise self._error(f"did not listen on port {port} within {START_S:g}s")

    def hold(self) -> None:
        """Stops it until `go_on`: some keep a processor busy also when they have nothing to do."""
        self._child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `hold`."""
        self._child.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it: with its stdin, or for good END_S later."""
        self.go_on()
        self._stdin.close()
        self._stdout.close()  # or it would wait for somebody who reads its last answer
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._child.stdin is not None  # both were asked for
        return self._child.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._child.stdout is not None
        return self._child.stdout

    def _error(self, what: str) -> MooncakeError:
        lines = self._log_path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        log = "".join(f"\n  {line}" for line in lines)
        return StoreError(f"{self._name} {what}{log}")


@contextmanager
def temporary_folder() -> Generator[Path]:
    """For logs and run directories of one run."""
    with tempfile.TemporaryDirectory(prefix="mooncake-bench-") as name:
        yield Path(name)


@contextmanager
def workers(
    interpreter: Interpreter,
    folder: Path,
    *,
    role: str,
    count: int,
    master: str,
    protocol: str,
    key_file: str = "",
    checksum: str = "",
    busy_poll_s: float = 0.0,
    tls: TlsConfig | None = None,
    weights: Mapping[str, float] | None = None,
    segment_bytes: int = 0,
) -> Generator[list[Process]]:
    """Processes that have set up a store; with segment_bytes each contributes so much memory."""
    # A protocol that is named is meant: an implementation may know a shorter way to processes of its own host.
    environ = {**interpreter.environ, "MC_FORCE_TCP": "1" if protocol == "tcp" else "0"}
    if key_file:
        environ[KEY_VARIABLE] = key_file
    if checksum:
        environ[CHECKSUM_VARIABLE] = checksum
    if busy_poll_s:
        environ[BUSY_POLL_VARIABLE] = format_duration(busy_poll_s)
    if tls:
        files = absolute(tls)
        environ.update(zip(TLS_VARIABLES, (files.certificate, files.key, files.ca), strict=True))
    if weights:
        environ[WEIGHTS_VARIABLE] = json.dumps(weights)
    with ExitStack() as stack:
        started = []
        for number in range(count):
            boot = {
                "hostname": f"{HOST}:{free_port()}",
                "master": master,
                "protocol": protocol,
                "segment_bytes": segment_bytes,
                "buffer_bytes": CLIENT_BUFFER_BYTES,
            }
            command = [interpreter.python, str(WORKERS / "worker.py"), json.dumps(boot)]
            process = Process(f"{role}-{number}", command, environ, folder)
            started.append(stack.enter_context(process))
        for process in started:
            process.receive(START_S)
        yield started


def run_phase(processes: Sequence[Process], phases: Sequence[Mapping[str, Any]]) -> list[list[list[Any]]]:
    """Has each process run its phase, all at once; per thread of all of them its calls' (kind, began, ended, bytes).

    Raises:
        StoreError: a call failed, or moved wrong bytes.
    """
    for process, phase in zip(processes, phases, strict=True):
        process.send(phase)
    return [process.receive(PHASE_S)["spans"] for process in processes]


def find_interpreter(text: str) -> Interpreter:
    """The Python of a path, or of a virtual environment's folder.

    Raises:
        UsageError: there is none.
    """
    path = Path(text).expanduser()
    python = path / "bin" / "python" if path.is_dir() else path
    if not os.access(python, os.X_OK):
        raise UsageError(f"expected a Python, or a folder of a virtual environment, got {text}")
    return Interpreter(str(python.absolute()))


def free_port() -> int:
    """One that nobody listened on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _boot(busy_poll_s: float) -> dict[str, Any]:
    """What a supervisor would tell a master."""
    config = {
        "cluster": "bench-store",
        "master": {"port": 0, "admin_port": None},
        "transfer": {"busy_poll": busy_poll_s},
    }
    return {"config": config, "process": "master", "master_address": "", "log_level": "warning"}
