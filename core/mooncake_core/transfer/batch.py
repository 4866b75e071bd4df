"""What is submitted to the Transfer Engine, and what became of it."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from msgspec import Struct

from mooncake_core.errors import TransferError
from mooncake_core.transfer.contract import Kind, Range
from mooncake_core.transfer.lanes import Carried, Lane, Part, carried
from mooncake_core.wire.messages.memory import SegmentDescriptor


class State(enum.Enum):
    """Of one request of a batch."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


class TransferRequest(Struct, frozen=True):
    """One transfer between local pieces and ranges of a segment, of the same total length."""

    kind: Kind
    pieces: tuple[memoryview, ...]
    segment: SegmentDescriptor
    ranges: tuple[Range, ...]
    in_order: bool = False
    """To be carried whole, by a path that writes the ranges one after the other."""


class Transfer:
    """A submitted request: what became of it."""

    __slots__ = (
        "deadline_s",
        "error",
        "num_bytes",
        "parts",
        "path",
        "remaining",
        "request",
        "started_s",
        "state",
        "whole",
    )

    def __init__(self, request: TransferRequest, num_bytes: int, started_s: float, deadline_s: float) -> None:
        self.request = request
        self.num_bytes = num_bytes
        self.started_s = started_s
        """As deadline_s by time.monotonic()."""
        self.deadline_s = deadline_s
        self.state = State.PENDING
        self.error: TransferError | TimeoutError | None = None
        self.path = ""
        """Name of the transport that carried it, or was tried last."""
        self.remaining = 0
        """Slices under way."""
        self.parts: list[Part] | None = None
        """What of it has moved, where it was posted."""
        self.whole: tuple[Lane, float] | None = None
        """What moved all of it at once in the calling thread, and when that was done."""

    def carried(self) -> list[Carried]:
        """What each address or NIC has carried of it until now, and the time that took."""
        if self.whole is not None:
            lane, ended_s = self.whole
            return carried([Part(lane, self.num_bytes, ended_s)], self.started_s)
        return carried(self.parts or (), self.started_s)


class Batch:
    """Requests submitted together; made by allocate_batch, given back by free."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.transfers: list[Transfer] = []
        self.pending = 0
        self.on_done: list[Callable[[bool], None]] = []
        """Called, each once, when nothing is pending any more: whether all went well."""
        self.waiting: list[threading.Event] = []
        """Set, each of them, when nothing is pending any more."""
