"""One process of `mooncake bench transfer --against`, as a script: `PYTHON worker.py JSON`.

It registers memory and says where it is. An initiator then gets one JSON line per phase, and answers with one line; a target gets
none. Both end with stdin. Before a phase is timed, its bytes are written, read back and compared.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import random
import sys
import threading
import time
from typing import Any

SEED = 7


class Wrong(Exception):
    """A call did not answer as it must, or moved wrong bytes."""


class Memory:
    """Registered, and touched."""

    def __init__(self, engine: Any, num_bytes: int) -> None:
        self._array = (ctypes.c_char * num_bytes)()
        self.address = ctypes.addressof(self._array)
        self.num_bytes = num_bytes
        ctypes.memset(self.address, 1, num_bytes)
        expect(engine.register_memory(self.address, num_bytes), 0, "register_memory")

    def fill(self, content: bytes) -> None:
        ctypes.memmove(self.address, content, len(content))

    def starts_with(self, content: bytes) -> bool:
        return ctypes.string_at(self.address, len(content)) == content


class Load:
    """What each thread moves, again and again: a batch of blocks, and then the next one in its share of the memory."""

    def __init__(self, engine: Any, memory: Memory, phase: dict[str, Any]) -> None:
        self._move = getattr(engine, f"batch_transfer_sync_{phase['kind']}")
        self._peer, self._address = phase["peer"], phase["address"]
        self._here = memory.address
        self._block, self._batch = phase["block_bytes"], phase["batch"]
        self._share = memory.num_bytes // phase["threads"] // (self._block * self._batch) * self._block * self._batch
        self._at = [0] * phase["threads"]

    def step(self, thread: int) -> int:
        start = thread * self._share + self._at[thread]
        size: int = self._block * self._batch
        self._at[thread] = (self._at[thread] + size) % self._share
        offsets = range(start, start + size, self._block)
        code = self._move(
            self._peer,
            [self._here + offset for offset in offsets],
            [self._address + offset for offset in offsets],
            [self._block] * self._batch,
        )
        expect(code, 0, "the transfer")
        return size


def check_bytes(engine: Any, memory: Memory, phase: dict[str, Any]) -> None:
    """Writes a batch of random bytes and reads it back."""
    size, block = phase["block_bytes"] * phase["batch"], phase["block_bytes"]
    content = random.Random(SEED).randbytes(size)
    here = list(range(memory.address, memory.address + size, block))
    there = list(range(phase["address"], phase["address"] + size, block))
    lengths = [block] * phase["batch"]
    memory.fill(content)
    expect(engine.batch_transfer_sync_write(phase["peer"], here, there, lengths), 0, "the first write")
    memory.fill(bytes(size))
    expect(engine.batch_transfer_sync_read(phase["peer"], here, there, lengths), 0, "the first read")
    if not memory.starts_with(content):
        raise Wrong("the bytes read are not the bytes written")


def run_phase(engine: Any, memory: Memory, phase: dict[str, Any]) -> dict[str, Any]:
    """Moves in all threads until the time is over."""
    check_bytes(engine, memory, phase)
    load = Load(engine, memory, phase)
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


def expect(code: int, wanted: int, what: str) -> None:
    if code != wanted:
        raise Wrong(f"{what} answered {code}")


def main() -> None:
    boot = json.loads(sys.argv[1])
    try:
        engine = importlib.import_module("mooncake.engine").TransferEngine()
    except ImportError as error:
        say({"error": f"{sys.executable} has no mooncake.engine ({error}): pip install ./dropin, or upstream's wheel"})
        return
    try:
        expect(engine.initialize("127.0.0.1", "P2PHANDSHAKE", boot["protocol"], ""), 0, "initialize")
        memory = Memory(engine, boot["memory_bytes"])
        say({"name": f"127.0.0.1:{engine.get_rpc_port()}", "address": memory.address})
        for line in sys.stdin:
            say(run_phase(engine, memory, json.loads(line)))
    except Wrong as error:
        say({"error": str(error)})


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # an engine's threads may outlast the interpreter, and fall over what it has freed
