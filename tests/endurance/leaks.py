"""What a process holds: files, threads, shared memory. Counted when nothing is under way, so that what grows is a leak."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

WARM_COUNTS: Final = 3
"""By then connections to all peers are open, and their memory is mapped: the most of these counts is what it starts from."""
SLACK_FILES: Final = 32
"""Connections come and go with peers that restart, a node may be reached by shared memory for the first time late (some ten
files for each of three), and pools of threads fill up by and by. What leaks with each of hundreds of restarts grows beyond."""
SLACK_THREADS: Final = 16
SLACK_MAPS: Final = 8
"""Of each node its control page and its segment, mapped when they are first used."""


class Held(NamedTuple):
    """By one process."""

    files: int
    threads: int
    maps: int
    """Of memory that is shared with others."""


def held(pid: int) -> Held:
    """What a process holds now."""
    with open(f"/proc/{pid}/maps") as maps:
        shared = {line.split()[4] for line in maps if "/memfd:" in line}
    return Held(len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), len(shared))


class Leaks:
    """Compares each process with itself, as it was in its first counts."""

    def __init__(self) -> None:
        self._first: dict[int, Held] = {}
        self._num_counts: dict[int, int] = {}
        self.last: dict[str, Held] = {}

    def count(self, pids: dict[str, int]) -> list[str]:
        """What has grown, in words."""
        self.last = {name: held(pid) for name, pid in pids.items()}
        grown = []
        for name, pid in pids.items():
            now = self.last[name]
            number = self._num_counts[pid] = self._num_counts.get(pid, 0) + 1
            if number <= WARM_COUNTS:
                self._first[pid] = Held(*map(max, self._first.get(pid, now), now))
                continue
            first = self._first[pid]
            slack = Held(first.files + SLACK_FILES, first.threads + SLACK_THREADS, first.maps + SLACK_MAPS)
            if any(more > most for more, most in zip(now, slack, strict=True)):
                grown.append(f"{name} had {first}, and has {now}")
        return grown
