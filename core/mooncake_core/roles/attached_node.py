"""A segment for a program that is no role of ours: a store role in a child process, which ends with the program."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Final

import msgspec

from mooncake_core.errors import ConfigError, DeadlineExceeded
from mooncake_core.roles.parent import Announcement, Boot
from mooncake_core.roles.restart import RestartPolicy

READY_S: Final = 60.0
END_S: Final = 5.0

_log = logging.getLogger(__name__)


class AttachedNode:
    """The child, started again when it dies. Its memory is shared with every process of the host that may map it."""

    def __init__(self, boot: Boot) -> None:
        """Starts it, and waits until it is a member of the cluster.

        Raises:
            ConfigError: it could not start; its own words are in the message.
            DeadlineExceeded: it did not get there within READY_S, because the master does not answer, say.
        """
        self._boot = boot
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._process = self._start()
        self._await_ready()
        threading.Thread(target=self._keep, name=f"{boot.process}-watch", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self._process.pid

    def close(self) -> None:
        """Ends the child, which leaves the cluster in good order. Idempotent."""
        with self._lock:
            self._ending.set()
            process = self._process
        _end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            # -P: a program may run anywhere, and a module that lies there must not be taken for one of ours
            [sys.executable, "-P", "-m", "mooncake_core.roles.process", self._boot.process],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C is for the program, which closes its node when it ends. In a session of its own the kernel would also set
            # its processor time off against the whole program's (autogroups, see sched(7)): it gets next to none there while
            # a thread of the program spins on the processor that both are bound to, as vLLM's workers do.
            process_group=0,
        )
        assert process.stdin is not None  # all three were asked for above
        assert process.stdout is not None
        assert process.stderr is not None
        self._ready = threading.Event()
        self._complaint = ""
        self._readers = [
            _reader(process.stdout, self._on_announcement),
            _reader(process.stderr, self._on_log),
        ]
        with contextlib.suppress(BrokenPipeError):  # it ended at once: its own words say why
            os.write(process.stdin.fileno(), msgspec.json.encode(self._boot) + b"\n")
        return process

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self._ready.wait(0.05):
            if self._process.poll() is not None:
                _end(self._process)
                for reader in self._readers:
                    reader.join(END_S)
                raise ConfigError(
                    f"the node {self._boot.process} could not start (exit code {self._process.returncode}): "
                    f"{self._complaint or 'it did not say why'}"
                )
            if time.monotonic() > deadline:
                _end(self._process)
                raise DeadlineExceeded(
                    f"the node {self._boot.process} did not join the master at {self._boot.master_address} within {READY_S:g}s"
                )

    def _keep(self) -> None:
        """Starts it again whenever it dies; what it held is lost, the room is not."""
        policy = RestartPolicy()
        while True:
            started = time.monotonic()
            code = self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            delay_s = policy.delay_after(time.monotonic() - started)
            if self._ending.is_set():
                return
            _log.error("node %s died (%d); starting it again in %.1fs", self._boot.process, code, delay_s)
            if self._ending.wait(delay_s):
                return
            with self._lock:
                if self._ending.is_set():
                    return
                self._process = self._start()

    def _on_announcement(self, line: bytes) -> None:
        msgspec.json.decode(line, type=Announcement)
        self._ready.set()

    def _on_log(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text.startswith("error: "):
            self._complaint = text.removeprefix("error: ")
        _log.info("%s: %s", self._boot.process, text)


def _reader(stream: IO[bytes], handle: Callable[[bytes], None]) -> threading.Thread:
    def read() -> None:
        with stream:
            for line in stream:
                handle(line)

    thread = threading.Thread(target=read, name="node-output", daemon=True)
    thread.start()
    return thread


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its parent has gone, as far as it can tell; what does not end then is killed."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
