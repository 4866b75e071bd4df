"""A master and store nodes as processes that a test kills, stops and starts itself: no supervisor brings them back."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from mooncake_core.config.load import load_config
from mooncake_core.config.schema import ClusterConfig
from mooncake_core.roles.parent import Announcement, Boot

READY_S = 60.0
MASTER = "master"


class RoleProcess:
    """One role, through all its starts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "MOONCAKE_LOG_LEVEL": "info"}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None  # it was started
        return self._process.pid

    def begin(self, config: ClusterConfig, master_address: str) -> None:
        """Starts it; `wait` says when it is ready."""
        boot = Boot(config=config, process=self.name, master_address=master_address, log_level="info")
        command = [sys.executable, "-m", "mooncake_core.roles.process", self.name]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=self._environ
            )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(boot) + b"\n")
        self._process.stdin.flush()

    def wait(self) -> Announcement:
        """Where it can be reached, once it can."""
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(READY_S)
        line = self._process.stdout.readline() if ready else b""
        assert line, f"{self.name} did not start:\n{self.log_tail}"
        return msgspec.json.decode(line, type=Announcement)

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """In good order; a traceback of it would show in its log."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """It is silent, and alive: as one that swaps, or behind a network that is down."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def log_tail(self) -> str:
        return self.log[-2000:]

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not end on {number.name}:\n{self.log_tail}") from None
        finally:
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


class Processes:
    """The master and its nodes, by name. The master keeps its address through its deaths."""

    def __init__(self, folder: Path, yaml: str) -> None:
        config = folder / "endurance.yaml"
        config.write_text(yaml)
        self._config = load_config(config).config
        self.folder = folder
        self.nodes = [entry.name for entry in self._config.store]
        self.by_name = {name: RoleProcess(name, folder) for name in [MASTER, *self.nodes]}
        self.address = ""
        try:
            self.start(MASTER)
            self.start(*self.nodes)
        except BaseException:
            self.close()
            raise

    def start(self, *names: str) -> None:
        """Starts those that do not run, all at once; returns when they are ready."""
        starting = [self.by_name[name] for name in names if not self.by_name[name].alive]
        for process in starting:
            process.begin(self._config, self.address)
        for process in starting:
            announced = process.wait()
            if process.name == MASTER:
                self._pin(announced.address)

    def alive(self) -> list[str]:
        """The nodes that run."""
        return [name for name in self.nodes if self.by_name[name].alive]

    def close(self) -> None:
        """Ends all: the nodes before the master."""
        began = time.monotonic()
        for name in [*self.nodes, MASTER]:
            self.by_name[name].stop()
        assert time.monotonic() - began < READY_S, "it took too long to end"

    def _pin(self, address: str) -> None:
        self.address = address
        master = msgspec.structs.replace(self._config.master, port=int(address.rpartition(":")[2]))
        self._config = msgspec.structs.replace(self._config, master=master)
