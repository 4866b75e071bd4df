"""What bytes travel by, and how much each has carried: for the reports of transfers, and for metrics."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from mooncake_core.errors import PathFailed

MOST_LANES: Final = 256
"""That are told apart: each is a row for whoever collects metrics. Further ones are counted together."""
OTHERS: Final = "others"


class Lane:
    """One way to a peer: a transport, and where both ends of it are. Counted by many threads without a lock: what is lost so is
    less than what a lock would cost each transfer."""

    __slots__ = ("local", "num_bytes", "num_failures", "num_operations", "num_set_aside", "peer", "transport")

    def __init__(self, transport: str, local: str = "", peer: str = "") -> None:
        self.transport = transport
        self.local = local
        """An address of this host, or a NIC's port; empty where the memory itself is the way."""
        self.peer = peer
        self.num_bytes = 0
        self.num_operations = 0
        self.num_failures = 0
        """Operations that went another way then, or failed."""
        self.num_set_aside = 0
        """How often it was not used for a while, because it had failed."""

    def __str__(self) -> str:
        return f"{self.transport} {self.local or '?'} to {self.peer}" if self.peer else self.transport

    def count(self, num_bytes: int) -> None:
        """An operation that ended well."""
        self.num_bytes += num_bytes
        self.num_operations += 1

    def fail(self, error: Exception) -> None:
        """An operation that did not; what was withdrawn or is not exported is no fault of the way there."""
        if isinstance(error, PathFailed | TimeoutError):
            self.num_failures += 1


class Lanes:
    """All of an engine, made as they are used. Any thread."""

    def __init__(self, most: int = MOST_LANES) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, str, str], Lane] = {}
        self._only: dict[str, Lane] = {}

    def get(self, transport: str, local: str = "", peer: str = "") -> Lane:
        """The one between these ends; where there are too many, the one that stands for others of its transport."""
        key = transport, local, peer
        with self._lock:
            if key not in self._lanes and len(self._lanes) >= self._most:
                key = transport, OTHERS, OTHERS
            return self._lanes.setdefault(key, Lane(*key))

    def only(self, transport: str) -> Lane:
        """That of a transport which says nothing of lanes."""
        found = self._only.get(transport)  # without a lock: mostly it is there
        if found is None:
            found = self._only[transport] = self.get(transport)
        return found

    def all(self) -> list[Lane]:
        """Those that were used until now."""
        with self._lock:
            return [*self._lanes.values()]


class Carried(Struct, frozen=True):
    """What one lane did for a transfer."""

    transport: str
    local: str
    peer: str
    num_bytes: int
    seconds: float
    """From the transfer's start until the last of these bytes had moved."""


class Part(NamedTuple):
    """A part of a transfer that has moved."""

    lane: Lane
    num_bytes: int
    ended_s: float


def carried(parts: Sequence[Part], started_s: float) -> list[Carried]:
    """By lane, in the order in which they were first done with something."""
    found: dict[Lane, tuple[int, float]] = {}
    for lane, num_bytes, ended_s in parts:
        before, last_s = found.get(lane, (0, started_s))
        found[lane] = before + num_bytes, max(last_s, ended_s)
    return [
        Carried(lane.transport, lane.local, lane.peer, num_bytes, last_s - started_s)
        for lane, (num_bytes, last_s) in found.items()
    ]
