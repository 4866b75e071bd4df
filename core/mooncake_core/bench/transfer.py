"""`mooncake bench transfer`: the Transfer Engine between two processes, beside what the machine can do without it."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import statistics
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import xxhash
from msgspec import Struct, field

from mooncake_core import registry
from mooncake_core.address import HostPort
from mooncake_core.bench.host_steps import Host, HostSteps, sum_up
from mooncake_core.bench.movers import (
    CopyMover,
    EngineMover,
    Load,
    Measured,
    Mover,
    PerftestMover,
    SocketMover,
    measure,
)
from mooncake_core.bench.statistics import Estimate, Quantiles, median_ratio, quantiles
from mooncake_core.bench.transfer_target import HOST, Boot, Ready, ask
from mooncake_core.errors import PluginUnavailable, PluginUnknown, TransferError, UsageError
from mooncake_core.store.node import available_memory_bytes
from mooncake_core.transfer.contract import Kind, Range, Transport
from mooncake_core.transfer.engine import TransferEngine, TransferRequest, first_error
from mooncake_core.transfer.host import default_host_id
from mooncake_core.transfer.local import LocalTransport
from mooncake_core.transfer.paths import LOCAL
from mooncake_core.transfer.shared_memory import SharedMemory
from mooncake_core.units import format_size
from mooncake_core.wire.messages.memory import SegmentDescriptor

FEWEST_PAIRS: Final = 10
DEFAULT_CACHE_BYTES: Final = 256 << 20
CACHE_FILES: Final = "/sys/devices/system/cpu/cpu0/cache"
NUM_REGIONS: Final = 3
"""The initiator's, the target's, and one more for the copying baseline."""
CHECK_BLOCK_BYTES: Final = 1 << 20
END_PATIENCE_S: Final = 5.0


class TransferSettings(Struct, frozen=True, kw_only=True):
    """What to measure."""

    transports: list[str]
    sizes: list[int]
    """Of blocks, in bytes."""
    kinds: list[str] = field(default_factory=lambda: ["read", "write"])
    checksums: list[bool] = field(default_factory=lambda: [False, True])
    batch: int = 4
    """Blocks that a thread moves at once."""
    threads: int = 2
    """That move blocks and wait; and that copy, in the baseline of one host."""
    connections: int = 2
    """Of the engine to its peer; and of the baseline of a network, each with a thread."""
    busy_poll_s: float = 0.0
    """For so long the engine's threads look before they sleep, at both ends; those of the baseline sleep."""
    seconds: float = 0.3
    """Of each measurement."""
    pairs: int = FEWEST_PAIRS
    memory_bytes: int = 0
    """Of each region; 0: more than the last level cache."""
    host_step_s: float = 0.0
    """Of a host that computes in the main thread meanwhile; 0: there is none."""
    seed: int = 0
    """Of the bootstrap."""


class Cell(Struct, frozen=True, kw_only=True):
    """One transport, direction, block size, with the checksum on or off. Rates are medians over pairs."""

    transport: str
    kind: str
    block_bytes: int
    checksum: bool
    latency_s: Quantiles | None
    """Of `batch` blocks, until all have moved."""
    block_s: float | None
    """A block's share of the median latency."""
    bytes_per_s: float
    baseline: str
    """socket, memcpy or perftest; but for the last it sums its blocks where the engine's are summed."""
    baseline_latency_s: Quantiles | None
    """Of as many blocks for socket, of one for memcpy."""
    baseline_bytes_per_s: float
    of_baseline: Estimate | None
    of_raw: Estimate | None
    """Of the baseline without a checksum, whatever this cell has; None where that was not measured."""
    host: HostSteps | None = None
    """Where there was one."""


class LaneBytes(Struct, frozen=True, kw_only=True):
    """What one address or NIC carried, of all that was measured and before."""

    transport: str
    local: str
    peer: str
    num_bytes: int


class TransferReport(Struct, frozen=True, kw_only=True):
    """What was measured."""

    settings: TransferSettings
    memory_bytes: int
    cores: int
    skipped: dict[str, str]
    """Transport → why it is not available."""
    cells: list[Cell]
    lanes: list[LaneBytes]
    unfinished: int
    """Cells that an interrupt left out."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """One transport, ready to be measured."""

    transport: str
    engine: TransferEngine
    segment: SegmentDescriptor
    memory: memoryview
    other: memoryview
    """For the copying baseline, and the far end of `local`."""
    raw: HostPort | None
    """Of the raw socket baseline; None where copying is the baseline."""
    perftest: bool
    """Whether that of RDMA takes the place of the socket."""

    @property
    def baseline(self) -> str:
        if self.perftest:
            return "perftest"
        return "memcpy" if self.raw is None else "socket"


class TransferRun:
    """One benchmark. `report` may be asked for at any time; it has the cells that are whole."""

    def __init__(
        self, settings: TransferSettings, on_progress: Callable[[int], None], *, target: HostPort | None = None
    ) -> None:
        """`target`: of a process that is there already (transfer_target.offer); by default a child is started.

        Raises:
            UsageError: the blocks do not fit in.
            WireError: there is no such target.
        """
        self._far_host = target.host if target else HOST
        self._far = ask(target) if target else None
        if self._far is not None:
            settings = msgspec.structs.replace(settings, memory_bytes=self._far.segment.length_bytes)
        self._settings = settings
        self._on_progress = on_progress
        self._memory_bytes = region_bytes(settings)
        self._skipped: dict[str, str] = {}
        self._cells: list[Cell] = []
        self._lanes: list[LaneBytes] = []
        self._kinds = [Kind[name.upper()] for name in settings.kinds]
        self._host = Host(settings.host_step_s) if settings.host_step_s else None

    def execute(self) -> TransferReport:
        """Measures everything.

        Raises:
            PluginUnavailable, PluginUnknown: none of the transports is available.
            TransferError: a transfer failed, or moved other bytes than it should.
        """
        available = self._available()
        with ExitStack() as stack:
            memory = stack.enter_context(region("bench-initiator", self._memory_bytes))
            other = stack.enter_context(region("bench-other", self._memory_bytes))
            remote = [name for name in available if name != LOCAL]
            target = self._far
            if target is None and remote:
                target = stack.enter_context(target_process(remote, self._memory_bytes, self._settings.busy_poll_s))
            for name, transport in available.items():
                self._measure_transport(name, transport, memory, other, target)
        return self.report()

    def report(self) -> TransferReport:
        """Of the cells measured until now."""
        done = len(self._cells)
        wanted = [name for name in self._settings.transports if name not in self._skipped]
        return TransferReport(
            settings=self._settings,
            memory_bytes=self._memory_bytes,
            cores=os.cpu_count() or 1,
            skipped=dict(self._skipped),
            cells=list(self._cells),
            lanes=list(self._lanes),
            unfinished=num_cells(self._settings, wanted) - done,
        )

    def _available(self) -> dict[str, type[Transport]]:
        return available_transports(self._settings.transports, self._skipped, self._check_reachable)

    def _check_reachable(self, name: str, kind: type[Transport]) -> None:
        """Raises PluginUnavailable where the target cannot be reached like that."""
        if self._far is None:
            return
        segment = self._far.segment
        if name not in segment.paths or name == LOCAL:
            offered = ", ".join(path for path in segment.paths if path != LOCAL)
            raise PluginUnavailable(f"{name}: the target offers {offered}")
        if kind.capabilities.same_host_only and segment.host_id != default_host_id():
            raise PluginUnavailable(f"{name}: the target is on another host")

    def _measure_transport(
        self, name: str, transport: type[Transport], memory: SharedMemory, other: SharedMemory, target: Ready | None
    ) -> None:
        engine = _engine([] if name == LOCAL else [name], self._settings.connections, self._settings.busy_poll_s)
        try:
            engine.register_memory(memory.view, memory.descriptor)
            if name == LOCAL or target is None:
                segment = engine.export(engine.register_memory(other.view, other.descriptor), writable=True)
            else:
                segment = target.segment
            raw = (
                None
                if transport.capabilities.same_host_only or target is None
                else HostPort(self._far_host, target.raw_port)
            )
            perftest = transport.capabilities.is_rdma and self._far is None and PerftestMover.is_available()
            setting = _Setting(name, engine, segment, memory.view, other.view, raw, perftest)
            _check_bytes(engine, segment, memory.view, name)
            for kind in self._kinds:
                for block_bytes in self._settings.sizes:
                    self._measure_cells(setting, kind, block_bytes)
        finally:
            self._lanes += [
                LaneBytes(transport=lane.transport, local=lane.local, peer=lane.peer, num_bytes=lane.num_bytes)
                for lane in engine.lanes()
            ]
            engine.close()

    def _measure_cells(self, setting: _Setting, kind: Kind, block_bytes: int) -> None:
        """The cells of one block size, their measurements interleaved."""
        movers: dict[tuple[bool, bool], Mover] = {}
        with ExitStack() as stack:
            for checksum in self._settings.checksums:
                load = Load(kind=kind, block_bytes=block_bytes, checksum=checksum)
                movers[checksum, True] = self._engine_mover(setting, load)
                movers[checksum, False] = self._baseline_mover(setting, load, stack)
            runs, idle_steps_s = self._alternate(movers)
        for checksum in self._settings.checksums:
            self._cells.append(
                make_cell(
                    setting.transport,
                    kind,
                    block_bytes,
                    checksum,
                    setting.baseline,
                    runs,
                    batch=self._settings.batch,
                    seed=self._settings.seed,
                    idle_steps_s=idle_steps_s,
                )
            )
            self._on_progress(len(self._cells))

    def _engine_mover(self, setting: _Setting, load: Load) -> Mover:
        return EngineMover(
            load,
            setting.memory,
            self._settings.threads,
            engine=setting.engine,
            segment=setting.segment,
            batch=self._settings.batch,
        )

    def _baseline_mover(self, setting: _Setting, load: Load, stack: ExitStack) -> Mover:
        if setting.perftest:
            return PerftestMover(load, setting.memory, self._settings.threads)
        if setting.raw is None:
            return CopyMover(load, setting.memory, self._settings.threads, other=setting.other)
        connections, batch = self._settings.connections, self._settings.batch
        mover = SocketMover(
            load, setting.memory, connections, host=setting.raw.host, port=setting.raw.port, batch=batch
        )
        stack.callback(mover.close)
        return mover

    def _alternate(
        self, movers: dict[tuple[bool, bool], Mover]
    ) -> tuple[dict[tuple[bool, bool], list[Measured]], list[list[float]]]:
        """Measures each mover once per pair, in an order that turns round from pair to pair; and what the host's steps took
        before each pair, while nothing moved."""
        for mover in movers.values():
            measure(mover, 0.0)  # opens connections, maps memory
        runs: dict[tuple[bool, bool], list[Measured]] = {key: [] for key in movers}
        idle_steps_s: list[list[float]] = []
        keys = list(movers)
        for number in range(self._settings.pairs):
            if self._host:
                idle_steps_s.append(self._host.during(self._settings.seconds))
            for key in keys if number % 2 == 0 else reversed(keys):
                runs[key].append(measure(movers[key], self._settings.seconds, self._host))
        return runs, idle_steps_s


def available_transports(
    names: Sequence[str],
    skipped: dict[str, str],
    check: Callable[[str, type[Transport]], None] = lambda name, kind: None,
) -> dict[str, type[Transport]]:
    """The transports that can be loaded and made here, and pass `check`; why others do not goes to `skipped`.

    Raises:
        PluginUnavailable, PluginUnknown: that is none of them.
    """
    found: dict[str, type[Transport]] = {}
    reason: PluginUnavailable | PluginUnknown | None = None
    for name in names:
        try:
            kind = LocalTransport if name == LOCAL else registry.load("transport", name)
            check(name, kind)
            _engine([] if name == LOCAL else [name], 1).close()
            found[name] = kind
        except (PluginUnavailable, PluginUnknown) as error:
            skipped[name] = str(error)
            reason = error
    if not found and reason is not None:
        raise reason
    return found


def num_cells(settings: TransferSettings, transports: Sequence[str]) -> int:
    """How many rows there will be."""
    return len(transports) * len(settings.kinds) * len(settings.sizes) * len(settings.checksums)


def make_cell(
    transport: str,
    kind: Kind,
    block_bytes: int,
    checksum: bool,
    baseline: str,
    runs: dict[tuple[bool, bool], list[Measured]],
    *,
    batch: int,
    seed: int,
    idle_steps_s: Sequence[Sequence[float]] = (),
) -> Cell:
    """Sums up the runs of one cell; keys are (checksum, whether it is the engine). `idle_steps_s`: of the host while nothing
    moved, if there is one."""
    ours, theirs = runs[checksum, True], runs[checksum, False]
    latency = quantiles([latency for run in ours for latency in run.latencies_s])
    raw = runs.get((False, False))
    return Cell(
        transport=transport,
        kind=kind.name.lower(),
        block_bytes=block_bytes,
        checksum=checksum,
        latency_s=latency,
        block_s=None if latency is None else latency.p50 / batch,
        bytes_per_s=statistics.median(run.bytes_per_s for run in ours),
        baseline=baseline,
        baseline_latency_s=quantiles([latency for run in theirs for latency in run.latencies_s]),
        baseline_bytes_per_s=statistics.median(run.bytes_per_s for run in theirs),
        of_baseline=_ratio(ours, theirs, seed),
        of_raw=None if raw is None else _ratio(ours, raw, seed),
        host=sum_up(idle_steps_s, [run.host_steps_s for run in ours], [run.host_steps_s for run in theirs], seed)
        if idle_steps_s
        else None,
    )


def region_bytes(settings: TransferSettings) -> int:
    """How large each region is.

    Raises:
        UsageError: the blocks do not fit in, or the machine has not so much memory.
    """
    needed = max(settings.sizes) * settings.batch * max(settings.threads, settings.connections)
    size = settings.memory_bytes or max(last_level_cache_bytes(), needed)
    if size < needed:
        raise UsageError(
            f"expected room for threads (or connections) x batch blocks of {format_size(max(settings.sizes))}, "
            f"{format_size(needed)}, got {format_size(size)}: "
            "raise --memory, or lower --batch, --threads, --connections or --sizes"
        )
    available = available_memory_bytes()
    if NUM_REGIONS * size > available:
        raise UsageError(
            f"expected {format_size(NUM_REGIONS * size)} of memory for {NUM_REGIONS} regions, "
            f"the machine has {format_size(available)} available: lower --memory"
        )
    return size


def last_level_cache_bytes() -> int:
    """The largest cache of the first core; a guess where the kernel does not say."""
    sizes = []
    for path in Path(CACHE_FILES).glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) << 10)
    return max(sizes, default=DEFAULT_CACHE_BYTES)


def _ratio(ours: Sequence[Measured], theirs: Sequence[Measured], seed: int) -> Estimate | None:
    return median_ratio([(one.bytes_per_s, other.bytes_per_s) for one, other in zip(ours, theirs, strict=True)], seed)


def _engine(transports: Sequence[str], connections: int, busy_poll_s: float = 0.0) -> TransferEngine:
    return TransferEngine(
        owner="bench-initiator",
        host_id=default_host_id(),
        incarnation=secrets.randbits(63),
        transports=transports,
        connections_per_peer=connections,
        busy_poll_s=busy_poll_s,
    )


@contextmanager
def region(name: str, num_bytes: int) -> Generator[SharedMemory]:
    region = SharedMemory(name, num_bytes)
    _fill(region.view, 0)  # no page is touched for the first time while the clock runs
    try:
        yield region
    finally:
        region.close()


@contextmanager
def target_process(transports: list[str], num_bytes: int, busy_poll_s: float = 0.0) -> Generator[Ready]:
    """The child process; it ends when its stdin does, so with this process at the latest."""
    command = [sys.executable, "-m", "mooncake_core.bench.transfer_target"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    boot = Boot(transports=transports, region_bytes=num_bytes, busy_poll_s=busy_poll_s)
    try:
        child.stdin.write(msgspec.json.encode(boot) + b"\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise TransferError(f"the target process ended with code {child.wait()} before it was ready; see above")
        yield msgspec.json.decode(line, type=Ready)
    finally:
        child.stdin.close()
        try:
            child.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def _check_bytes(engine: TransferEngine, segment: SegmentDescriptor, memory: memoryview, transport: str) -> None:
    """Writes all of the segment and reads it back, which also touches every page on the way.

    Raises:
        TransferError: what came back is not what went out.
    """
    _fill(memory, secrets.randbits(32) + 1)
    expected = xxhash.xxh3_64(memory).intdigest()
    _move_all(engine, segment, memory, Kind.WRITE)
    _fill(memory, 0)
    _move_all(engine, segment, memory, Kind.READ)
    if xxhash.xxh3_64(memory).intdigest() != expected:
        raise TransferError(f"{transport}: the bytes read are not the bytes written")


def _move_all(engine: TransferEngine, segment: SegmentDescriptor, memory: memoryview, kind: Kind) -> None:
    offsets = range(0, memory.nbytes, CHECK_BLOCK_BYTES)
    pieces = [memory[offset : offset + CHECK_BLOCK_BYTES] for offset in offsets]
    batch = engine.allocate_batch(len(pieces))
    requests = [
        TransferRequest(kind, (piece,), segment, (Range(offset, piece.nbytes),))
        for offset, piece in zip(offsets, pieces, strict=True)
    ]
    engine.submit(batch, requests)
    engine.wait(batch)
    if (error := first_error([found for _, found in engine.status(batch)])) is not None:
        raise error


def _fill(memory: memoryview, seed: int) -> None:
    """Repeats random bytes, zeros for seed 0; their length is no block's, so that each block differs."""
    length = CHECK_BLOCK_BYTES + 13
    tile = random.Random(seed).randbytes(length) if seed else bytes(length)
    for start in range(0, memory.nbytes, length):
        part = memory[start : start + length]
        part[:] = tile[: part.nbytes]
