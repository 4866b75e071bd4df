"""One process of `mooncake bench transfer --against`, as a script: `PYTHON worker.py JSON`.

It registers memory and says where it is. An initiator then gets one JSON line per phase, and answers with one line; a target gets
none. Both end with stdin. Before a phase is timed, its bytes are written, read back and compared.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib
import importlib.metadata
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

SEED = 7
PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
NIXL_MODULES = ("nixl", "nixl_cu12", "nixl_cu13")
"""The first is a chooser between the others, and not everywhere."""

Move = Callable[[str, int], None]
"""Carries the batch of blocks that begins so far into the memory, "read" or "write"."""


class Wrong(Exception):
    """A call did not answer as it must, or moved wrong bytes."""


class NotInstalled(Wrong):
    """The interpreter lacks what is to be measured."""


class Engine(ABC):
    """What moves bytes. Memory is registered, and touched, by the constructor."""

    name: str
    address: int
    num_bytes: int

    @abstractmethod
    def whereabouts(self) -> dict[str, Any]:
        """What an initiator must know."""

    @abstractmethod
    def mover(self, peer: dict[str, Any], phase: dict[str, Any]) -> Move:
        """Blocks begin every stride_bytes, here as there."""

    def fill(self, content: bytes) -> None:
        ctypes.memmove(self.address, content, len(content))

    def has(self, content: bytes, start: int) -> bool:
        return ctypes.string_at(self.address + start, len(content)) == content


class MooncakeEngine(Engine):
    """Of this project, or of upstream."""

    name = "mooncake.engine"

    def __init__(self, boot: dict[str, Any]) -> None:
        self._engine = importlib.import_module("mooncake.engine").TransferEngine()
        self.num_bytes = boot["memory_bytes"]
        expect(self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""), 0, "initialize")
        if boot["transport"] == "shm":  # of one's own allocation: others could not map it
            self.address = self._engine.allocate_managed_buffer(self.num_bytes)
            if not self.address:
                raise Wrong("allocate_managed_buffer answered 0")
        else:
            self._array = (ctypes.c_char * self.num_bytes)()
            self.address = ctypes.addressof(self._array)
            expect(self._engine.register_memory(self.address, self.num_bytes), 0, "register_memory")
        ctypes.memset(self.address, 1, self.num_bytes)

    def whereabouts(self) -> dict[str, Any]:
        return {"name": f"127.0.0.1:{self._engine.get_rpc_port()}", "address": self.address}

    def mover(self, peer: dict[str, Any], phase: dict[str, Any]) -> Move:
        stride, batch = phase["stride_bytes"], phase["batch"]
        moves = {kind: getattr(self._engine, f"batch_transfer_sync_{kind}") for kind in ("read", "write")}
        lengths = [phase["block_bytes"]] * batch

        def move(kind: str, start: int) -> None:
            offsets = range(start, start + stride * batch, stride)
            here = [self.address + offset for offset in offsets]
            there = [peer["address"] + offset for offset in offsets]
            expect(moves[kind](peer["name"], here, there, lengths), 0, f"the {kind}")

        return move


class NixlEngine(Engine):
    """NIXL over UCX, in the way that is quickest for it: descriptors are prepared once, a batch names some, and who waits asks
    again and again. The far end has a thread that lets it take part; an initiator's own would only compete with the asking."""

    def __init__(self, boot: dict[str, Any]) -> None:
        module, package = _nixl()
        self.name = f"NIXL {importlib.metadata.version(package)}"
        self.num_bytes = boot["memory_bytes"]
        threads = module.nixl_thread_sync_t
        sync = threads.NIXL_THREAD_SYNC_STRICT if boot["threads"] > 1 else threads.NIXL_THREAD_SYNC_NONE
        config = module.nixl_agent_config(enable_prog_thread=boot["role"] == "target", sync_mode=sync)
        self._agent = module.nixl_agent(f"{boot['role']}-{os.getpid()}", config)
        self._numpy = importlib.import_module("numpy")
        self._array = (ctypes.c_char * self.num_bytes)()
        self.address = ctypes.addressof(self._array)
        ctypes.memset(self.address, 1, self.num_bytes)
        self._agent.register_memory([(self.address, self.num_bytes, 0, "")], "DRAM")
        self._peers: dict[str, str] = {}

    def whereabouts(self) -> dict[str, Any]:
        return {"name": base64.b64encode(self._agent.get_agent_metadata()).decode(), "address": self.address}

    def mover(self, peer: dict[str, Any], phase: dict[str, Any]) -> Move:
        stride, batch = phase["stride_bytes"], phase["batch"]
        if peer["name"] not in self._peers:
            self._peers[peer["name"]] = self._agent.add_remote_agent(base64.b64decode(peer["name"]))
        here = self._blocks("", self.address, phase)
        there = self._blocks(self._peers[peer["name"]], peer["address"], phase)
        agent, indices_of = self._agent, self._numpy.arange

        def move(kind: str, start: int) -> None:
            first = start // stride
            indices = indices_of(first, first + batch, dtype="int32")
            request = agent.make_prepped_xfer(kind.upper(), here, indices, there, indices)
            state = agent.transfer(request)
            while state == "PROC":
                state = agent.check_xfer_state(request)
            request.release()
            expect(state, "DONE", f"the {kind}")

        return move

    def _blocks(self, agent: str, address: int, phase: dict[str, Any]) -> Any:
        block, stride = phase["block_bytes"], phase["stride_bytes"]
        starts = range(address, address + self.num_bytes - block + 1, stride)
        rows = self._numpy.array([(start, block, 0) for start in starts], dtype="uint64")
        return self._agent.prep_xfer_dlist(agent, rows, "DRAM")


class Load:
    """What each thread moves, again and again: a batch of blocks, and then the next one in its share of the memory."""

    def __init__(self, move: Move, num_bytes: int, phase: dict[str, Any]) -> None:
        self._move, self._kind = move, phase["kind"]
        self._moved: int = phase["block_bytes"] * phase["batch"]
        self._step: int = phase["stride_bytes"] * phase["batch"]
        self._share = num_bytes // phase["threads"] // self._step * self._step
        self._at = [0] * phase["threads"]

    def step(self, thread: int) -> int:
        start = thread * self._share + self._at[thread]
        self._at[thread] = (self._at[thread] + self._step) % self._share
        self._move(self._kind, start)
        return self._moved


def check_bytes(engine: Engine, move: Move, phase: dict[str, Any]) -> None:
    """Writes a batch of random bytes and reads it back."""
    block, stride = phase["block_bytes"], phase["stride_bytes"]
    numbers = random.Random(SEED)
    content = b"".join(numbers.randbytes(stride) for _ in range(phase["batch"]))  # all at once it makes 256 MiB at most
    engine.fill(content)
    move("write", 0)
    engine.fill(bytes(len(content)))
    move("read", 0)
    if not all(engine.has(content[at : at + block], at) for at in range(0, len(content), stride)):
        raise Wrong("the bytes read are not the bytes written")


def run_phase(engine: Engine, phase: dict[str, Any]) -> dict[str, Any]:
    """Moves in all threads until the time is over."""
    move = engine.mover(phase["peer"], phase)
    check_bytes(engine, move, phase)
    load = Load(move, engine.num_bytes, phase)
    moved = [0] * phase["threads"]
    latencies: list[list[float]] = [[] for _ in moved]
    errors: list[str] = []
    barrier = threading.Barrier(len(moved) + 1)

    def work(thread: int) -> None:
        barrier.wait()
        before = started = time.perf_counter()
        try:
            while before - started < phase["seconds"]:
                moved[thread] += load.step(thread)
                now = time.perf_counter()
                latencies[thread].append(now - before)
                before = now
        except Wrong as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(moved))]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    duration_s = time.perf_counter() - started
    if errors:
        raise Wrong(errors[0])
    return {
        "moved_bytes": sum(moved),
        "duration_s": duration_s,
        "latencies_s": list(itertools.chain.from_iterable(latencies)),
    }


def expect(answer: object, wanted: object, what: str) -> None:
    if answer != wanted:
        raise Wrong(f"{what} answered {answer}")


def find_engine(boot: dict[str, Any]) -> Engine:
    """mooncake.engine where the interpreter has it, else NIXL."""
    try:
        return MooncakeEngine(boot)
    except ImportError as error:
        reason = error
    try:
        return NixlEngine(boot)
    except ImportError:
        install = "pip install ./dropin, upstream's wheel, or nixl"
        raise NotInstalled(f"{sys.executable} has no mooncake.engine ({reason}), and no NIXL: {install}") from None


def _nixl() -> tuple[Any, str]:
    """NIXL's Python interface, and the name of its package."""
    for name in NIXL_MODULES:
        with contextlib.suppress(ImportError):
            return importlib.import_module(f"{name}._api"), name.replace("_", "-")
    raise ImportError("no NIXL")


def end_with(parent: int) -> None:
    """While a worker is held it does not see that its stdin has ended."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
        raise SystemExit("the process that measures is gone")


def main() -> None:
    boot = json.loads(sys.argv[1])
    end_with(boot["parent"])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # engines log to stdout

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        engine = find_engine(boot)
        say({"engine": engine.name, **engine.whereabouts()})
        for line in sys.stdin:
            say(run_phase(engine, json.loads(line)))
    except Wrong as error:
        say({"error": str(error), "not_installed": isinstance(error, NotInstalled)})


if __name__ == "__main__":
    main()
    os._exit(0)  # an engine's threads may outlast the interpreter, and fall over what it has freed
