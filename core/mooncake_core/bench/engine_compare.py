"""`mooncake bench transfer --against`: this project's `mooncake.engine` and another interpreter's, under one load, in turn."""

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
from mooncake_core.bench.store_processes import START_S, Interpreter, Process, temporary_folder
from mooncake_core.errors import UsageError
from mooncake_core.store.node import available_memory_bytes
from mooncake_core.units import format_size

WORKER: Final = Path(__file__).parent / "engine_worker" / "worker.py"
NUM_PROCESSES: Final = 4
DEFAULT_MEMORY_BYTES: Final = 64 << 20
PATIENCE_S: Final = 60.0
"""Beyond the time that a phase is to take."""


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What to measure. The far end of each side is a process of its own interpreter."""

    against: str
    """The other Python."""
    sizes: list[int]
    kinds: list[str] = field(default_factory=lambda: ["read", "write"])
    batch: int = 64
    threads: int = 1
    protocol: str = "tcp"
    seconds: float = 0.3
    pairs: int = FEWEST_PAIRS
    memory_bytes: int = 0
    """Of each process; 0: as much as is needed, and more than most caches."""
    seed: int = 0


class EngineSide(Struct, frozen=True, kw_only=True):
    """One engine; medians over its runs."""

    bytes_per_s: float
    latency_s: Quantiles | None
    """Of a batch."""


class EngineCell(Struct, frozen=True, kw_only=True):
    """One direction and block size."""

    kind: str
    block_bytes: int
    ours: EngineSide
    against: EngineSide
    ratio: Estimate | None
    """Of rates, ours over the other's."""


class EngineReport(Struct, frozen=True, kw_only=True):
    """What was measured."""

    settings: EngineSettings
    cores: int
    cells: list[EngineCell]
    unfinished: int
    """Cells that an interrupt left out."""


class EngineRun:
    """One comparison. `report` may be asked for at any time; it has the cells that are whole."""

    def __init__(self, settings: EngineSettings, on_progress: Callable[[int], None]) -> None:
        """Raises UsageError where the memory has no room for a batch per thread."""
        needed = max(settings.sizes) * settings.batch * settings.threads
        memory_bytes = settings.memory_bytes or max(needed, DEFAULT_MEMORY_BYTES)
        available = available_memory_bytes()
        if not needed <= memory_bytes <= available // NUM_PROCESSES:
            raise UsageError(
                f"expected room for threads x batch blocks, {format_size(needed)}, in each of {NUM_PROCESSES} processes, got "
                f"{format_size(memory_bytes)} of {format_size(available)} available: change --memory, --batch, --threads or "
                "--sizes"
            )
        self._settings = structs.replace(settings, memory_bytes=memory_bytes)
        self._on_progress = on_progress
        self._cells: list[EngineCell] = []

    def execute(self) -> EngineReport:
        """Measures everything.

        Raises:
            MooncakeError: a process did not start, or a transfer failed; shows the end of its log.
        """
        with temporary_folder() as folder, ExitStack() as stack:
            sides = [
                _Side(stack, folder, name, Interpreter(python), self._settings)
                for name, python in (("ours", sys.executable), ("against", self._settings.against))
            ]
            for kind in self._settings.kinds:
                for block_bytes in self._settings.sizes:
                    self._cells.append(self._measure(sides, kind, block_bytes))
                    self._on_progress(len(self._cells))
        return self.report()

    def report(self) -> EngineReport:
        """Of the cells measured until now."""
        wanted = len(self._settings.kinds) * len(self._settings.sizes)
        return EngineReport(
            settings=self._settings,
            cores=os.cpu_count() or 1,
            cells=list(self._cells),
            unfinished=wanted - len(self._cells),
        )

    def _measure(self, sides: Sequence[_Side], kind: str, block_bytes: int) -> EngineCell:
        """Both, alternating, in an order that turns round from pair to pair."""
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
        return EngineCell(kind=kind, block_bytes=block_bytes, ours=ours, against=against, ratio=ratio)


class _Side:
    """An initiator and its target."""

    def __init__(
        self, stack: ExitStack, folder: Path, name: str, interpreter: Interpreter, settings: EngineSettings
    ) -> None:
        self._settings = settings
        # A protocol that is named is meant: an engine may know a shorter way to processes of its own host.
        environ = {**interpreter.environ, "MC_FORCE_TCP": "1" if settings.protocol == "tcp" else "0"}
        boot = {"protocol": settings.protocol, "memory_bytes": settings.memory_bytes}
        command = [interpreter.python, str(WORKER), json.dumps(boot)]
        self._target, self._initiator = (
            stack.enter_context(Process(f"{name}-{role}", command, environ, folder)) for role in ("target", "initiator")
        )
        self._peer = self._target.receive(START_S)
        self._initiator.receive(START_S)

    def run(self, kind: str, block_bytes: int) -> dict[str, Any]:
        """One phase."""
        settings = self._settings
        self._initiator.send(
            {
                "peer": self._peer["name"],
                "address": self._peer["address"],
                "kind": kind,
                "block_bytes": block_bytes,
                "batch": settings.batch,
                "threads": settings.threads,
                "seconds": settings.seconds,
            }
        )
        return self._initiator.receive(settings.seconds + PATIENCE_S)
