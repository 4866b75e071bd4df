"""What moves bytes in `mooncake bench transfer`: the Transfer Engine, and the baselines it is held against.

All walk in the same way through regions larger than the last level cache, so that none is flattered by it.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

import xxhash
from msgspec import Struct

from mooncake_core.bench.host_steps import Host
from mooncake_core.errors import TransferError
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.engine import TransferEngine, first_error
from mooncake_core.transfer.peer import TOGETHER_BYTES
from mooncake_core.wire.messages.memory import SegmentDescriptor

RAW_REQUEST: Final = struct.Struct("<BQQ")
"""Of the raw socket baseline: kind, offset, length."""
RAW_DONE: Final = b"\1"
RAW_BUFFER_BYTES: Final = 224 << 10
PERFTEST_BYTES: Final = 64 << 20
"""In one run of perftest; more where blocks are large."""
FEWEST_MESSAGES: Final = 8
PERFTEST_PATIENCE_S: Final = 30.0
PERFTEST_TRIES: Final = 5
"""It counts cycles: where it moved to a core whose counter is behind, which happens where that is emulated, it says 0."""


class Load(Struct, frozen=True, kw_only=True):
    """What one mover is to do, again and again."""

    kind: Kind
    block_bytes: int
    checksum: bool
    """Sum each block with xxh3-64: before it is written, after it was read, as the store's client does."""


class Measured(Struct, frozen=True, kw_only=True):
    """One timed run of a mover."""

    moved_bytes: int
    duration_s: float
    latencies_s: list[float]
    """Of each step."""
    host_steps_s: list[float] = []
    """What a host's own steps took meanwhile, where there was one."""

    @property
    def bytes_per_s(self) -> float:
        return self.moved_bytes / self.duration_s


class Mover(ABC):
    """Moves blocks between `memory` and somewhere else, in `threads` threads; each walks through its own share."""

    def __init__(self, load: Load, memory: memoryview, threads: int) -> None:
        self.load = load
        self.memory = memory
        self.threads = threads
        share = memory.nbytes // threads // load.block_bytes
        if share == 0:
            raise ValueError(f"expected room for a block of {load.block_bytes} per thread, got {memory.nbytes} bytes")
        self._offsets: list[Iterator[int]] = [
            itertools.cycle(range(first * load.block_bytes, (first + share) * load.block_bytes, load.block_bytes))
            for first in range(0, threads * share, share)
        ]

    @abstractmethod
    def step(self, thread: int) -> int:
        """Moves some blocks in the calling thread; how many bytes these were."""

    def timed(self, seconds: float, host: Host | None = None) -> Measured:
        """Steps in all threads, once at least, until the time is over; the host makes its own in the calling thread. Raises
        whatever a step raised."""
        return _steps(self, seconds, host)

    def _next_block(self, thread: int) -> tuple[int, memoryview]:
        offset = next(self._offsets[thread])
        return offset, self.memory[offset : offset + self.load.block_bytes]

    def _sum(self, block: memoryview, when: Kind) -> None:
        if self.load.checksum and self.load.kind is when:
            xxhash.xxh3_64(block).intdigest()


class EngineMover(Mover):
    """Through the Transfer Engine, as a thread does it that waits for its transfers."""

    def __init__(
        self,
        load: Load,
        memory: memoryview,
        threads: int,
        *,
        engine: TransferEngine,
        segment: SegmentDescriptor,
        batch: int,
    ) -> None:
        super().__init__(load, memory, threads)
        self._engine = engine
        self._segment = segment
        self._batch = batch

    def step(self, thread: int) -> int:
        blocks = [self._next_block(thread) for _ in range(self._batch)]
        for _, block in blocks:
            self._sum(block, Kind.WRITE)
        moved = self._engine.move(self.load.kind, self._segment, self._transfers(blocks))
        if (error := first_error([transfer.error for transfer in moved])) is not None:
            raise error
        for _, block in blocks:
            self._sum(block, Kind.READ)
        return self._batch * self.load.block_bytes

    def _transfers(self, blocks: Sequence[tuple[int, memoryview]]) -> list[tuple[list[memoryview], list[Range]]]:
        """As few as `Endpoint.move` makes of them."""
        together = max(1, TOGETHER_BYTES // self.load.block_bytes)
        return [
            ([block for _, block in part], [Range(offset, block.nbytes) for offset, block in part])
            for part in (blocks[start : start + together] for start in range(0, len(blocks), together))
        ]


class SocketMover(Mover):
    """The baseline of a network: a plain blocking socket per thread, as many blocks in flight as in the engine's batch."""

    def __init__(self, load: Load, memory: memoryview, threads: int, *, host: str, port: int, batch: int) -> None:
        super().__init__(load, memory, threads)
        self._batch = batch
        self._sockets = [socket.create_connection((host, port)) for _ in range(threads)]
        for connection in self._sockets:
            tune(connection)

    def step(self, thread: int) -> int:
        connection = self._sockets[thread]
        blocks = [self._next_block(thread) for _ in range(self._batch)]
        for offset, block in blocks:
            self._sum(block, Kind.WRITE)
            connection.sendall(RAW_REQUEST.pack(self.load.kind, offset, block.nbytes))
            if self.load.kind is Kind.WRITE:
                connection.sendall(block)
        done = memoryview(bytearray(len(RAW_DONE)))
        for _, block in blocks:
            receive_into(connection, done if self.load.kind is Kind.WRITE else block)
            self._sum(block, Kind.READ)
        return self._batch * self.load.block_bytes

    def close(self) -> None:
        """Ends the connections."""
        for connection in self._sockets:
            connection.close()


class CopyMover(Mover):
    """The baseline of one host: memmove between two regions of this process."""

    def __init__(self, load: Load, memory: memoryview, threads: int, *, other: memoryview) -> None:
        super().__init__(load, memory, threads)
        # Kept, so that the memory cannot go while its address is in use.
        self._ends = (ctypes.c_char.from_buffer(memory), ctypes.c_char.from_buffer(other))
        self._here, self._there = (ctypes.addressof(end) for end in self._ends)

    def step(self, thread: int) -> int:
        offset, block = self._next_block(thread)
        self._sum(block, Kind.WRITE)
        target, source = self._here + offset, self._there + offset
        if self.load.kind is Kind.WRITE:
            target, source = source, target
        ctypes.memmove(target, source, block.nbytes)
        self._sum(block, Kind.READ)
        return block.nbytes


class PerftestMover(Mover):
    """The baseline of RDMA: what the programs of perftest reach between two processes of this host, over its first device.
    They have a clock of their own, which does not count how long they take to start."""

    PROGRAMS: ClassVar[dict[Kind, str]] = {Kind.READ: "ib_read_bw", Kind.WRITE: "ib_write_bw"}

    @classmethod
    def is_available(cls) -> bool:
        """Whether they are installed."""
        return all(shutil.which(program) for program in cls.PROGRAMS.values())

    def step(self, thread: int) -> int:
        raise NotImplementedError("perftest is timed as a whole")

    def timed(self, seconds: float, host: Host | None = None) -> Measured:
        """Without a host: its programs do not share an interpreter with one."""
        count = max(FEWEST_MESSAGES, PERFTEST_BYTES // self.load.block_bytes)
        program = self.PROGRAMS[self.load.kind]
        command = [program, "-F", "-s", str(self.load.block_bytes), "-n", str(count), "-p", str(_free_port())]
        for _ in range(PERFTEST_TRIES):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
                try:
                    rate = self._ask(command, server)
                finally:
                    server.kill()
            if rate:
                moved_bytes = count * self.load.block_bytes
                return Measured(moved_bytes=moved_bytes, duration_s=moved_bytes / rate, latencies_s=[])
        raise TransferError(
            f"{program} measured 0 MB/s {PERFTEST_TRIES} times: this machine's cycle counters do not agree"
        )

    def _ask(self, command: list[str], server: subprocess.Popen[bytes]) -> float:
        """Bytes per second, as the client says when it has run; tried until the server listens."""
        row = re.compile(rf"^\s*{self.load.block_bytes}\s+\d+\s+[\d.]+\s+([\d.]+)", re.MULTILINE)
        deadline_s = time.monotonic() + PERFTEST_PATIENCE_S
        while True:
            client = subprocess.run([*command, "127.0.0.1"], capture_output=True, text=True, check=False)
            found = row.search(client.stdout)
            if client.returncode == 0 and found:
                return float(found[1]) * (1 << 20)
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise TransferError(f"{command[0]} failed: {(client.stderr or client.stdout).strip()}")
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def measure(mover: Mover, seconds: float, host: Host | None = None) -> Measured:
    """One timed run. Raises whatever a step raised."""
    return mover.timed(seconds, host)


def _steps(mover: Mover, seconds: float, host: Host | None) -> Measured:
    """The clock runs until the last thread has ended."""
    barrier = threading.Barrier(mover.threads + 1)
    stop = threading.Event()
    # Not Thread.join: interrupted once, it returns at once ever after, while the thread still runs.
    ended = [threading.Event() for _ in range(mover.threads)]
    moved = [0] * mover.threads
    latencies: list[list[float]] = [[] for _ in range(mover.threads)]
    errors: list[Exception] = []

    def run(thread: int) -> None:
        try:
            barrier.wait()
            before = started = time.perf_counter()
            while not stop.is_set() and (before - started < seconds or not moved[thread]):
                moved[thread] += mover.step(thread)
                now = time.perf_counter()
                latencies[thread].append(now - before)
                before = now
        except Exception as error:  # raised again in the caller's thread
            errors.append(error)
        finally:
            ended[thread].set()

    threads = [threading.Thread(target=run, args=(thread,), name="bench-mover") for thread in range(mover.threads)]
    try:
        for thread in threads:
            thread.start()
        barrier.wait()
        started = time.perf_counter()
        host_steps_s = host.until(lambda: all(event.is_set() for event in ended)) if host else []
        for event in ended:
            event.wait()
        duration_s = time.perf_counter() - started
    except BaseException:  # Ctrl-C: nobody may touch the memory any more when this returns
        stop.set()
        barrier.abort()
        for thread, event in zip(threads, ended, strict=True):
            if thread.ident is not None:
                event.wait()
        raise
    if errors:
        raise errors[0]
    return Measured(
        moved_bytes=sum(moved),
        duration_s=duration_s,
        latencies_s=list(itertools.chain.from_iterable(latencies)),
        host_steps_s=host_steps_s,
    )


def tune(connection: socket.socket) -> None:
    """What the engine's transport over TCP sets too: the baseline is to be as fast as sockets can be."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, RAW_BUFFER_BYTES)


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fills a view.

    Raises:
        ConnectionResetError: the peer ended before that.
    """
    while view.nbytes:
        received = connection.recv_into(view, view.nbytes, socket.MSG_WAITALL)
        if received == 0:
            raise ConnectionResetError("the peer closed the connection")
        view = view[received:]
