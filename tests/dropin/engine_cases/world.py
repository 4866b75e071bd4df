"""What a case has to work with. Only the standard library and `mooncake.engine`: upstream's interpreter has no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.dropin.casework import MIB, Case, Memory, in_threads, pattern, raises, registering

REGION_BYTES = 8 * MIB
NOBODY = "127.0.0.1:1"
PATIENCE_S = 10.0
CASES: dict[str, Case] = {}
case = registering(CASES)
__all__ = [
    "CASES",
    "MIB",
    "NOBODY",
    "REGION_BYTES",
    "FarEnd",
    "Memory",
    "World",
    "case",
    "in_threads",
    "pattern",
    "raises",
]


class FarEnd:
    """A process with an engine, and registered memory."""

    def __init__(self, hostname: str = "127.0.0.1", metadata: str = "P2PHANDSHAKE") -> None:
        command = [sys.executable, "-m", "tests.dropin.engine_cases.far_end"]
        path = os.pathsep.join(filter(None, sys.path))  # it finds `mooncake.engine` where this process found it
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert self.ask("initialize", hostname, metadata, "tcp", "") == 0
        self.name = f"127.0.0.1:{self.ask('get_rpc_port')}"
        self.address = self.memory(REGION_BYTES)

    def ask(self, name: str, *arguments: Any) -> Any:
        """The answer of its engine's method."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"answer"'):
                return json.loads(line)["answer"]
        raise AssertionError(f"the far end ended with code {self._process.wait()}")

    def memory(self, num_bytes: int, *, registered: bool = True) -> int:
        """New memory there."""
        address = self.ask("memory", num_bytes, 0)
        if registered:
            assert self.ask("register_memory", address, num_bytes) == 0
        return int(address)

    def content(self, num_bytes: int, address: int | None = None) -> bytes:
        """Of its memory, from the beginning by default."""
        return bytes.fromhex(self.ask("content", self.address if address is None else address, num_bytes))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class World:
    """An engine here, and one in another process."""

    def __init__(self, *, upstream: bool) -> None:
        from mooncake import engine

        self.upstream = upstream
        self.module = engine
        self._kept: list[int] = []
        self._memories: list[Memory] = []
        self.engine = self.connect()
        self.name = f"127.0.0.1:{self.engine.get_rpc_port()}"
        self.far = FarEnd()

    def connect(self) -> Any:
        engine = self.module.TransferEngine()
        code = engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "")
        assert code == 0, f"initialize answered {code}"
        return engine

    def here(self, ours: Any, theirs: Any) -> Any:
        """What is expected where the two differ."""
        return theirs if self.upstream else ours

    def memory(self, num_bytes: int, content: bytes = b"", *, registered: bool = True) -> Memory:
        """Memory of this process."""
        memory = Memory(num_bytes, content)
        self._memories.append(memory)
        if registered:
            assert self.engine.register_memory(memory.address, num_bytes) == 0
            self._kept.append(memory.address)
        return memory

    def until(self, ended: Callable[[], Any]) -> Any:
        """What `ended` answers first that is not empty."""
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := ended()):
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.005)
        return answer

    def status(self, number: int) -> int:
        """What becomes of a batch."""
        return int(self.until(lambda: self.engine.transfer_check_status(number)))

    def moved(self, is_there: Callable[[], bool]) -> None:
        """Whether all bytes are there, after an asynchronous batch was said to be done: upstream says so too early."""
        assert self.until(is_there) if self.upstream else is_there()

    def empty(self) -> None:
        """Forgets this process' memory."""
        for address in self._kept:
            self.engine.unregister_memory(address)
        self._kept.clear()
        self._memories.clear()
        self.engine.get_notifies()

    def close(self) -> None:
        self.far.kill()
