"""Real clusters of real processes, for tests: needs the `mooncake` command to be installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx

from mooncake_core.roles.run_directory import RunDirectory, StartState
from mooncake_core.wire.messages.inspection import CacheReport, GetStatus, InspectCache, Status
from mooncake_core.wire.sync import SyncClient

READY_S = 90.0
STOPPED_ALONE_S: Final = 5.0
"""A cluster stops within that, whatever it is doing."""
STOPPED_S: Final = 15.0
"""Where other tests take the processors."""


class Cluster:
    """`mooncake start --role all`, in a run directory of its own."""

    def __init__(self, config: Path, folder: Path, *settings: str, ready_s: float = READY_S) -> None:
        self.folder = folder
        self.environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        self.log_path = folder / "cluster.log"
        overrides = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "mooncake_cli.main", "start", "--role", "all", "-c", str(config), *overrides]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environ)
        try:
            self.state = self._wait_until_ready(ready_s)
        except BaseException:
            self.process.terminate()
            self.process.wait()
            raise
        self.http = httpx.Client(base_url=self.state.gateway_url, timeout=60)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def complete(self, prompt: str | list[int], **options: Any) -> dict[str, Any]:
        """The answer to one greedy completion."""
        answer = self.http.post("/v1/completions", json=self.body(prompt, **options))
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def body(self, prompt: str | list[int], **options: Any) -> dict[str, Any]:
        model = self.http.get("/v1/models").json()["data"][0]["id"] if "model" not in options else options["model"]
        return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 8, **options}

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a mooncake command against this cluster."""
        command = [sys.executable, "-m", "mooncake_cli.main", *arguments]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)

    def ask(self, message: Any, reply_type: type[Any]) -> Any:
        client = SyncClient(self.state.master_address, name="test")
        try:
            return client.call(message, reply_type, timeout_s=10)
        finally:
            client.close()

    def status(self) -> Status:
        status: Status = self.ask(GetStatus(), Status)
        return status

    def cache(self) -> CacheReport:
        report: CacheReport = self.ask(InspectCache(check=True), CacheReport)
        return report

    def pid(self, name: str) -> int:
        return next(process.pid for process in self._state().processes if process.name == name)

    def kill(self, name: str) -> int:
        """kill -9; returns the old pid."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_until_back(self, name: str, old_pid: int) -> None:
        """Waits until a killed process was started again, and the whole cluster can serve."""
        wait_for(lambda: self.pid(name) != old_pid and self._state().ready and self._serves(), READY_S)

    def stop(self) -> float:
        """SIGTERM; returns the seconds it took."""
        self.http.close()
        started = time.monotonic()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)
        return time.monotonic() - started

    def _serves(self) -> bool:
        try:
            return self.http.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def _state(self) -> StartState:
        return self._states()[0]

    def _states(self) -> list[StartState]:
        root = self.folder / "mooncake"
        names = [path.name for path in root.iterdir()] if root.is_dir() else []
        return [state for name in names for state in RunDirectory(name, root).states()]

    def _wait_until_ready(self, ready_s: float) -> StartState:
        deadline = time.monotonic() + ready_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the cluster ended:\n{self.log}"
            for state in self._states():
                if state.ready:
                    return state
            time.sleep(0.05)
        raise AssertionError(f"not ready within {ready_s:g}s:\n{self.log}")


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return process_state(pid) not in ("", "Z")


def process_state(pid: int) -> str:
    """The kernel's letter for it, as T for a stopped one; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def resources(pid: int) -> tuple[int, int]:
    """(open files, threads) of a process."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def as_json(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What a command printed with --json."""
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed
