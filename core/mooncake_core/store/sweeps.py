"""Removals of many objects, slice by slice: between two slices the pool does other work. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mooncake_core.errors import ObjectNotFound
from mooncake_core.store.events import Answer
from mooncake_core.store.objects import PoolObject
from mooncake_core.store.scans import Scan
from mooncake_core.wire.messages.pool import RemovedAll

Removes = Callable[[PoolObject, bool, float], str]
"""(object, also when leased, now) → error code, empty for success."""


@dataclass(slots=True)
class _Sweep:
    token: int
    scan: Scan
    force: bool
    removed: int = 0
    kept: int = 0


class Sweeps:
    """Those under way, one after the other."""

    def __init__(self, remove: Removes) -> None:
        self._remove = remove
        self._under_way: deque[_Sweep] = deque()

    @property
    def idle(self) -> bool:
        return not self._under_way

    def begin(self, token: int, scan: Scan, *, force: bool) -> None:
        """Somebody waits for the answer to `token`."""
        self._under_way.append(_Sweep(token, scan, force))

    def go_on(self, now: float) -> list[Answer]:
        """One slice; with the answer, if that was the last one."""
        if not self._under_way:
            return []
        sweep = self._under_way[0]
        for entry in sweep.scan.step():
            code = self._remove(entry, sweep.force, now)
            sweep.removed += not code
            sweep.kept += code not in ("", ObjectNotFound.code)
        if not sweep.scan.done:
            return []
        self._under_way.popleft()
        return [Answer(sweep.token, RemovedAll(removed=sweep.removed, kept=sweep.kept))]
