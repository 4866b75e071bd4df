"""`mooncake bench store`: implementations of `mooncake.store` under one load, in turn, beside what the machine can do."""

from __future__ import annotations

import os
import secrets
import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Struct

from mooncake_core.bench.statistics import Estimate, Quantiles, median_ratio, quantiles
from mooncake_core.bench.store_baseline import Baseline, baselines
from mooncake_core.bench.store_plan import StoreCase, StoreLoad, calls, operations_of, put_bytes
from mooncake_core.bench.store_processes import (
    PHASE_S,
    Interpreter,
    Process,
    run_phase,
    temporary_folder,
    workers,
)
from mooncake_core.config.schema import TlsConfig
from mooncake_core.errors import UsageError
from mooncake_core.store.node import available_memory_bytes
from mooncake_core.units import format_size

SEGMENT_SPARE: Final = 1.25
"""Of what is put: headers, and no eviction before the watermark."""
SEGMENT_SPARE_BYTES: Final = 256 << 20
REMOVE_BATCH: Final = 1000

Key = tuple[str, str]
"""Operation and name of the case."""


class Side(Struct, frozen=True, kw_only=True):
    """An implementation, and how it is asked to move bytes."""

    name: str
    python: str
    protocol: str
    master: str = ""
    """host:port of one that runs already, with nodes of its own; else one is started, with segments."""
    key_file: str = ""
    """Of a cluster that runs already."""
    tls: TlsConfig | None = None
    """Of a cluster that runs already."""
    weights: dict[str, float] = {}
    """Of a cluster that runs already."""
    checksum: str = ""
    """auto, on, or off; empty: as it is, for an implementation that has no such choice."""
    busy_poll_s: float = 0.0
    """For how long all processes look for what comes before they sleep; 0 for an implementation that does not."""


class StoreSettings(Struct, frozen=True, kw_only=True):
    """What to measure."""

    load: StoreLoad
    pairs: int
    nodes: int = 1
    """Segments of a cluster that is started."""
    baseline_s: float = 0.2
    """Of each measurement of a baseline."""


class StoreFigures(Struct, frozen=True, kw_only=True):
    """One side in one cell. Rates are medians over runs; those of processes are added."""

    latency_s: Quantiles | None
    """Of a call."""
    bytes_per_s: float
    keys_per_s: float


class StoreCell(Struct, frozen=True, kw_only=True):
    """One operation and case of one side, beside the side it is compared with and beside the baselines."""

    side: str
    operation: str
    object_bytes: int
    batch: int
    ours: StoreFigures
    against: StoreFigures | None
    rate_ratio: Estimate | None
    """Of bytes/s, of keys/s for exist: above 1 is better."""
    p50_ratio: Estimate | None
    """Of a call's median time: below 1 is better."""
    socket_bytes_per_s: float | None
    of_socket: Estimate | None
    socket_p50_s: float | None
    """Of a call's bytes in one direction, and the answer."""
    memcpy_bytes_per_s: float | None
    of_memcpy: Estimate | None


class StoreReport(Struct, frozen=True, kw_only=True):
    """What was measured."""

    settings: StoreSettings
    sides: list[Side]
    against: str
    cores: int
    warnings: list[str]
    cells: list[StoreCell]
    unfinished: int
    """Pairs that an interrupt left out."""


@dataclass(slots=True)
class Measured:
    """One side in one cell and one run."""

    seconds: list[float] = field(default_factory=list)
    """Of each call."""
    bytes_per_s: float = 0.0
    keys_per_s: float = 0.0

    def add(self, spans: Sequence[Sequence[Any]], counts: Sequence[tuple[int, int]], timed_s: float) -> None:
        """One thread's calls; counts are (keys, bytes) of each; timed_s is what they took in all."""
        self.seconds += [ended - began for _, began, ended, _ in spans]
        self.keys_per_s += sum(keys for keys, _ in counts) / timed_s
        self.bytes_per_s += sum(moved for _, moved in counts) / timed_s


class StoreRun:
    """One benchmark. `report` may be asked for at any time; it has the pairs that are whole."""

    def __init__(
        self,
        settings: StoreSettings,
        own: Sequence[Side],
        against: Side | None,
        *,
        warnings: Sequence[str] = (),
        on_progress: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._own = list(own)
        self._against = against
        self._sides = [*own, *([against] if against else [])]
        self._warnings = list(warnings)
        self._on_progress = on_progress
        self._runs: dict[str, list[dict[Key, Measured]]] = {side.name: [] for side in self._sides}
        self._baselines: list[dict[Key, Baseline]] = []
        self._tag = secrets.token_hex(4)
        self._done = 0

    def execute(self) -> StoreReport:
        """Measures everything; the order turns round from pair to pair, so that drift hits all alike.

        Raises:
            PluginUnavailable: a side has no `mooncake.store`.
            StoreError: a side does not start, a call failed, or bytes are not those that were put.
            UsageError: the machine has not got the memory.
        """
        load = self._settings.load
        check_memory(self._settings, starts_segments=any(not side.master for side in self._sides))
        with baselines(load.cases, threads=load.threads, seconds=self._settings.baseline_s) as base:
            for number in range(self._settings.pairs):
                pair: dict[str, dict[Key, Measured]] = {}
                for side in self._sides if number % 2 == 0 else reversed(self._sides):
                    pair[side.name] = self._measure(side, number)
                    self._step()
                self._baselines.append(base.run())
                self._step()
                for name, run in pair.items():
                    self._runs[name].append(run)
        return self.report()

    def report(self) -> StoreReport:
        """Of the pairs measured until now."""
        whole = min(len(self._baselines), *(len(runs) for runs in self._runs.values()))
        return StoreReport(
            settings=self._settings,
            sides=self._sides,
            against=self._against.name if self._against else "",
            cores=os.cpu_count() or 1,
            warnings=self._warnings,
            cells=[self._cell(side, key) for side in self._own for key in self._keys(whole)],
            unfinished=self._settings.pairs - whole,
        )

    def _step(self) -> None:
        self._done += 1
        self._on_progress(self._done)

    def _measure(self, side: Side, number: int) -> dict[Key, Measured]:
        load = self._settings.load
        found: dict[Key, Measured] = {}
        with clients(side, self._settings) as (writers, readers):
            for case in load.cases:
                tag = f"{self._tag}-{number}-{case.name}"
                put: list[int] = []
                for operation in operations_of(load, case):
                    planned = calls(load, case, operation)
                    spans = run_phase(
                        writers if operation == "put" else readers, phases(load, case, tag, operation, planned)
                    )
                    found[operation, case.name] = measured(load, case, planned, spans)
                    put += [number for worker in planned for kind, some in worker if kind == "put" for number in some]
                if side.master:
                    remove(writers[0], tag, put)
        return found

    def _keys(self, whole: int) -> list[Key]:
        load = self._settings.load
        if not whole:
            return []
        return [(operation, case.name) for case in load.cases for operation in operations_of(load, case)]

    def _cell(self, side: Side, key: Key) -> StoreCell:
        case = next(case for case in self._settings.load.cases if case.name == key[1])
        return make_cell(
            side.name,
            key[0],
            case,
            [run[key] for run in self._runs[side.name]],
            [run[key] for run in self._runs[self._against.name]] if self._against else [],
            [found for run in self._baselines if (found := run.get(_baseline_key(key))) is not None],
            seed=self._settings.load.seed,
        )


def num_steps(settings: StoreSettings, num_sides: int) -> int:
    """What progress counts: runs of sides, and of the baselines."""
    return settings.pairs * (num_sides + 1)


@contextmanager
def clients(side: Side, settings: StoreSettings) -> Generator[tuple[list[Process], list[Process]]]:
    """Processes that put, and others that get, of one side; with a master and segments of its own, if need be."""
    interpreter, load = Interpreter(side.python), settings.load
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        master = side.master or stack.enter_context(interpreter.master(folder, side.busy_poll_s))

        def start(role: str, count: int, segment_bytes: int = 0) -> list[Process]:
            return stack.enter_context(
                workers(
                    interpreter,
                    folder,
                    role=role,
                    count=count,
                    master=master,
                    protocol=side.protocol,
                    key_file=side.key_file,
                    checksum=side.checksum,
                    busy_poll_s=side.busy_poll_s,
                    tls=side.tls,
                    weights=side.weights,
                    segment_bytes=segment_bytes,
                )
            )

        if not side.master:
            start("segment", settings.nodes, segment_bytes(settings))
        yield start("writer", load.processes), start("reader", load.processes)


def phases(
    load: StoreLoad, case: StoreCase, tag: str, operation: str, planned: Sequence[Sequence[Any]]
) -> list[Mapping[str, Any]]:
    """What each process is told: its threads' calls."""
    batch = max(len(numbers) for worker in planned for _, numbers in worker)
    return [
        {
            "tag": tag,
            "object_bytes": case.object_bytes,
            "batch": 0 if operation == "exist" else batch,
            "calls": planned[first : first + load.threads],
        }
        for first in range(0, load.workers, load.threads)
    ]


def measured(
    load: StoreLoad, case: StoreCase, planned: Sequence[Sequence[Any]], spans: Sequence[Sequence[Sequence[Any]]]
) -> Measured:
    """Sums up one phase. Threads of a process call together: their time is from the first beginning to the last end."""
    found = Measured()
    for first, process in zip(range(0, load.workers, load.threads), spans, strict=True):
        rounds = zip(*process, strict=True)
        timed_s = sum(max(span[2] for span in some) - min(span[1] for span in some) for some in rounds)
        for thread, own in enumerate(process):
            counts = [
                (len(numbers), len(numbers) * case.object_bytes if kind == "put" else span[3])
                for (kind, numbers), span in zip(planned[first + thread], own, strict=True)
            ]
            found.add(own, counts, timed_s)
    return found


def make_cell(
    side: str,
    operation: str,
    case: StoreCase,
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    base: Sequence[Baseline],
    *,
    seed: int,
) -> StoreCell:
    """Sums up the runs of one cell; `theirs` and `base` may be empty."""
    rate = "keys_per_s" if operation == "exist" else "bytes_per_s"
    sockets, copies = [found.socket for found in base], [found.memcpy for found in base]
    return StoreCell(
        side=side,
        operation=operation,
        object_bytes=case.object_bytes,
        batch=case.batch,
        ours=_figures(ours),
        against=_figures(theirs) if theirs else None,
        rate_ratio=_ratio(ours, theirs, rate, seed),
        p50_ratio=median_ratio(
            [
                (statistics.median(one.seconds), statistics.median(other.seconds))
                for one, other in zip(ours, theirs, strict=False)
            ],
            seed,
        ),
        socket_bytes_per_s=statistics.median(found.bytes_per_s for found in sockets) if base else None,
        of_socket=_ratio(ours, sockets, "bytes_per_s", seed),
        socket_p50_s=statistics.median(s for found in sockets for s in found.latencies_s) if base else None,
        memcpy_bytes_per_s=statistics.median(found.bytes_per_s for found in copies) if base else None,
        of_memcpy=_ratio(ours, copies, "bytes_per_s", seed),
    )


def segment_bytes(settings: StoreSettings) -> int:
    """Of each segment that is started: what a run puts fits, and nothing is evicted."""
    return int(put_bytes(settings.load) * SEGMENT_SPARE + SEGMENT_SPARE_BYTES) // settings.nodes


def check_memory(settings: StoreSettings, *, starts_segments: bool) -> None:
    """Whether segments and clients fit.

    Raises:
        UsageError: they do not; shows the arithmetic.
    """
    clients_bytes = 2 * settings.load.workers * max(case.call_bytes for case in settings.load.cases)
    segments = settings.nodes * segment_bytes(settings) if starts_segments else 0
    available = available_memory_bytes()
    if clients_bytes + segments > available:
        raise UsageError(
            f"expected {format_size(segments)} of memory for segments and {format_size(clients_bytes)} for clients, the "
            f"machine has {format_size(available)} available: lower --case-bytes, --cases, --processes or --threads"
        )


def remove(client: Process, tag: str, numbers: Sequence[int]) -> None:
    """Takes a run's objects out of a cluster that goes on."""
    for first in range(0, len(numbers), REMOVE_BATCH):
        client.send({"tag": tag, "remove": list(numbers[first : first + REMOVE_BATCH])})
        client.receive(PHASE_S)


def _baseline_key(key: Key) -> Key:
    operation, case = key
    return ("get" if operation == "mixed" else operation), case


def _figures(runs: Sequence[Measured]) -> StoreFigures:
    return StoreFigures(
        latency_s=quantiles([seconds for run in runs for seconds in run.seconds]),
        bytes_per_s=statistics.median(run.bytes_per_s for run in runs),
        keys_per_s=statistics.median(run.keys_per_s for run in runs),
    )


def _ratio(ours: Sequence[Any], theirs: Sequence[Any], rate: str, seed: int) -> Estimate | None:
    pairs = [(getattr(one, rate), getattr(other, rate)) for one, other in zip(ours, theirs, strict=False)]
    return median_ratio(pairs, seed)
