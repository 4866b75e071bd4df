"""`mooncake bench transfer --against`: this project's `mooncake.engine` and another interpreter's, or its NIXL, under one load,
in turn."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field, structs

from mooncake_core.bench.compare import FEWEST_PAIRS
from mooncake_core.bench.statistics import Estimate, Quantiles, median_ratio, quantiles
from mooncake_core.bench.store_processes import BUSY_POLL_VARIABLE, START_S, Interpreter, Process, temporary_folder
from mooncake_core.bench.transfer import last_level_cache_bytes
from mooncake_core.errors import UsageError
from mooncake_core.store.node import available_memory_bytes
from mooncake_core.units import format_duration, format_size

WORKER: Final = Path(__file__).parent / "engine_worker" / "worker.py"
OURS: Final = "ours"
NUM_PROCESSES: Final = 4
TRANSPORTS: Final = ("tcp", "shm")
UCX_TRANSPORTS: Final = {"tcp": "tcp", "shm": "tcp,shm"}
"""What NIXL may use. UCX makes no connection over shared memory alone: it notices a peer's death by a socket."""
PATIENCE_S: Final = 60.0
"""Beyond the time that a phase is to take."""


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What to measure. The far end of each side is a process of its own interpreter."""

    against: str
    """The other Python."""
    sizes: list[int]
    kinds: list[str] = field(default_factory=lambda: ["read", "write"])
    batch: int = 64
    scattered: bool = False
    """Blocks lie apart from each other, as those of a paged cache: nobody can move several as one."""
    threads: int = 1
    transports: list[str] = field(default_factory=lambda: ["tcp"])
    """Of TRANSPORTS."""
    busy_poll_s: float = 0.0
    """For so long this project's threads look before they sleep, at both ends; NIXL's always look."""
    seconds: float = 0.3
    pairs: int = FEWEST_PAIRS
    memory_bytes: int = 0
    """Of each process; 0: as much as is needed, and no less than the last level cache."""
    seed: int = 0


class EngineSide(Struct, frozen=True, kw_only=True):
    """One engine; medians over its runs."""

    bytes_per_s: float
    latency_s: Quantiles | None
    """Of a batch."""


class EngineCell(Struct, frozen=True, kw_only=True):
    """One transport, direction and block size."""

    transport: str
    kind: str
    block_bytes: int
    ours: EngineSide
    against: EngineSide
    ratio: Estimate | None
    """Of rates, ours over the other's."""


class EngineReport(Struct, frozen=True, kw_only=True):
    """What was measured."""

    settings: EngineSettings
    against_engine: str
    """What the other interpreter has: mooncake.engine, or NIXL and its version."""
    cores: int
    cells: list[EngineCell]
    unfinished: int
    """Cells that an interrupt left out."""


class EngineRun:
    """One comparison. `report` may be asked for at any time; it has the cells that are whole."""

    def __init__(self, settings: EngineSettings, on_progress: Callable[[int], None]) -> None:
        """Raises UsageError where the memory has no room for a batch per thread, or a transport is none of TRANSPORTS."""
        unknown = [name for name in settings.transports if name not in TRANSPORTS]
        if unknown:
            raise UsageError(f"--against: expected transports of {', '.join(TRANSPORTS)}, got {', '.join(unknown)}")
        needed = _stride(max(settings.sizes), settings) * settings.batch * settings.threads
        memory_bytes = settings.memory_bytes or max(needed, last_level_cache_bytes())
        available = available_memory_bytes()
        if not needed <= memory_bytes <= available // NUM_PROCESSES:
            raise UsageError(
                f"expected room for threads x batch blocks and the gaps between them, {format_size(needed)}, in each of "
                f"{NUM_PROCESSES} processes, got {format_size(memory_bytes)} of {format_size(available)} available: "
                "change --memory, --batch, --threads or --sizes"
            )
        self._settings = structs.replace(settings, memory_bytes=memory_bytes)
        self._on_progress = on_progress
        self._cells: list[EngineCell] = []
        self._against_engine = "unknown"

    def execute(self) -> EngineReport:
        """Measures everything.

        Raises:
            MooncakeError: a process did not start, or a transfer failed; shows the end of its log.
        """
        for transport in self._settings.transports:
            with temporary_folder() as folder, ExitStack() as stack:
                sides = [
                    _Side(stack, folder, name, Interpreter(python), transport, self._settings)
                    for name, python in ((OURS, sys.executable), ("against", self._settings.against))
                ]
                self._against_engine = sides[1].engine
                try:
                    self._measure_all(sides, transport)
                finally:
                    for side in sides:
                        side.go_on()  # who ends may have something to say to who was held
        return self.report()

    def report(self) -> EngineReport:
        """Of the cells measured until now."""
        return EngineReport(
            settings=self._settings,
            against_engine=self._against_engine,
            cores=os.cpu_count() or 1,
            cells=list(self._cells),
            unfinished=num_cells(self._settings) - len(self._cells),
        )

    def _measure_all(self, sides: Sequence[_Side], transport: str) -> None:
        for kind in self._settings.kinds:
            for block_bytes in self._settings.sizes:
                self._cells.append(self._measure(sides, transport, kind, block_bytes))
                self._on_progress(len(self._cells))

    def _measure(self, sides: Sequence[_Side], transport: str, kind: str, block_bytes: int) -> EngineCell:
        """Both, alternating, in an order that turns round from pair to pair; the other one is held meanwhile."""
        runs: list[list[dict[str, Any]]] = [[] for _ in sides]
        for number in range(self._settings.pairs):
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                runs[index].append(sides[index].run(kind, block_bytes))
        rates = [[run["moved_bytes"] / run["duration_s"] for run in found] for found in runs]
        ours, against = (
            EngineSide(
                bytes_per_s=statistics.median(rate),
                latency_s=quantiles([latency for run in found for latency in run["latencies_s"]]),
            )
            for rate, found in zip(rates, runs, strict=True)
        )
        ratio = median_ratio(list(zip(*rates, strict=True)), self._settings.seed)
        return EngineCell(
            transport=transport, kind=kind, block_bytes=block_bytes, ours=ours, against=against, ratio=ratio
        )


def num_cells(settings: EngineSettings) -> int:
    """Of a whole report."""
    return len(settings.transports) * len(settings.kinds) * len(settings.sizes)


def _stride(block_bytes: int, settings: EngineSettings) -> int:
    """From the beginning of a block to that of the next one."""
    return 2 * block_bytes if settings.scattered else block_bytes


class _Side:
    """An initiator and its target."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        name: str,
        interpreter: Interpreter,
        transport: str,
        settings: EngineSettings,
    ) -> None:
        self._settings = settings
        # A transport that is named is meant: an engine may know a shorter way to processes of its own host.
        chosen = {"MC_FORCE_TCP": "1" if transport == "tcp" else "0", "UCX_TLS": UCX_TRANSPORTS[transport]}
        environ = {**interpreter.environ, **chosen}
        if settings.busy_poll_s and name == OURS:
            environ[BUSY_POLL_VARIABLE] = format_duration(settings.busy_poll_s)
        boot = {
            "parent": os.getpid(),
            "transport": transport,
            "memory_bytes": settings.memory_bytes,
            "threads": settings.threads,
        }

        def start(role: str) -> Process:
            command = [interpreter.python, str(WORKER), json.dumps({**boot, "role": role})]
            return stack.enter_context(Process(f"{name}-{role}", command, environ, folder))

        self._target, self._initiator = start("target"), start("initiator")
        self._peer = self._target.receive(START_S)
        self.engine: str = self._initiator.receive(START_S)["engine"]
        self._hold()

    def run(self, kind: str, block_bytes: int) -> dict[str, Any]:
        """One phase."""
        self.go_on()
        try:
            return self._run(kind, block_bytes)
        finally:
            self._hold()

    def go_on(self) -> None:
        """Lets both run."""
        self._target.go_on()
        self._initiator.go_on()

    def _hold(self) -> None:
        self._target.hold()
        self._initiator.hold()

    def _run(self, kind: str, block_bytes: int) -> dict[str, Any]:
        settings = self._settings
        self._initiator.send(
            {
                "peer": self._peer,
                "kind": kind,
                "block_bytes": block_bytes,
                "stride_bytes": _stride(block_bytes, settings),
                "batch": settings.batch,
                "threads": settings.threads,
                "seconds": settings.seconds,
            }
        )
        return self._initiator.receive(settings.seconds + PATIENCE_S)
