"""What the machine does without a store: a raw socket to another process, and memcpy, with the sizes of a load."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from mooncake_core.bench.movers import CopyMover, Load, Measured, Mover, SocketMover, measure
from mooncake_core.bench.store_plan import StoreCase
from mooncake_core.bench.transfer import region, target_process
from mooncake_core.bench.transfer_target import HOST
from mooncake_core.transfer.contract import Kind

FEWEST_BYTES: Final = 64 << 20
"""Of the regions that are walked through: more than a core's own caches hold."""


class Baseline(Struct, frozen=True, kw_only=True):
    """Of one direction and case."""

    socket: Measured
    memcpy: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """Measures again and again."""

    cases: Sequence[StoreCase]
    threads: int
    seconds: float
    """Of each measurement."""
    port: int
    """Of the far end of the socket."""
    memory: memoryview
    other: memoryview

    def run(self) -> dict[tuple[str, str], Baseline]:
        """By operation and name of the case; gets are reads from the far end, puts are writes to it."""
        return {
            (operation, case.name): self._measure(Kind[kind], case)
            for case in self.cases
            for operation, kind in (("put", "WRITE"), ("get", "READ"))
        }

    def _measure(self, kind: Kind, case: StoreCase) -> Baseline:
        load = Load(kind=kind, block_bytes=case.object_bytes, checksum=False)
        sockets = SocketMover(load, self.memory, self.threads, host=HOST, port=self.port, batch=case.batch)
        try:
            return Baseline(
                socket=self._timed(sockets),
                memcpy=self._timed(CopyMover(load, self.memory, self.threads, other=self.other)),
            )
        finally:
            sockets.close()

    def _timed(self, mover: Mover) -> Measured:
        measure(mover, 0.0)  # opens, maps, warms
        return measure(mover, self.seconds)


@contextmanager
def baselines(cases: Sequence[StoreCase], *, threads: int, seconds: float) -> Generator[Baselines]:
    """Ready to be measured while the context lasts."""
    num_bytes = max(FEWEST_BYTES, max(case.call_bytes for case in cases) * threads)
    with (
        region("bench-initiator", num_bytes) as memory,
        region("bench-other", num_bytes) as other,
        target_process(["tcp"], num_bytes) as target,
    ):
        yield Baselines(
            cases=cases,
            threads=threads,
            seconds=seconds,
            port=target.raw_port,
            memory=memory.view,
            other=other.view,
        )
